"""The settings that the chart takes, as JSON Schema, made from the settings themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stt_cascade.config import FallbackConfig, PrimaryConfig, TierConfig

# What follows from where the chart mounts what, and from `gpu`.
OWNED = {"CACHE_DIR", "CT2_MEDIUM_PATH", "CT2_SMALL_PATH", "DEVICE", "DEVICE_INDEX", "FALLBACK_URL"}
# They would be published in a ConfigMap.
SECRET = {"API_KEYS", "FALLBACK_API_KEY", "METRICS_KEYS"}
TEXT = {"$ref": "#/definitions/settingText"}
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
TIERS: dict[str, type[TierConfig]] = {
    "primarySettings": PrimaryConfig,
    "fallbackSettings": FallbackConfig,
}


def written_into(schema: str) -> str:
    """The text of values.schema.json, with the settings of both tiers as they are now."""
    for name, model in TIERS.items():
        lines = ",\n".join(f'        "{key}": {json.dumps(value)}' for key, value in _of(model))
        schema = re.sub(
            rf'(    "{name}": {{\n.*?\n      "properties": {{\n).*?(\n      }}\n    }})',
            # What comes out is no pattern.
            lambda found, lines=lines: found[1] + lines + found[2],  # type: ignore[misc]
            schema,
            count=1,
            flags=re.DOTALL,
        )
    return schema


def _of(model: type[TierConfig]) -> Iterator[tuple[str, dict[str, Any]]]:
    properties = model.model_json_schema(by_alias=True)["properties"]
    for name in sorted(properties):
        if name not in OWNED | SECRET and not name.endswith("_FILE"):
            yield name, _value(properties[name])


def _value(field: dict[str, Any]) -> dict[str, Any]:
    for option in field.get("anyOf", ()):  # what may be absent may be left out
        if option["type"] != "null":
            field = option
    if "enum" in field:
        return {"enum": field["enum"]}
    if field["type"] in ("integer", "number"):
        return {"type": field["type"], **{key: field[key] for key in BOUNDS if key in field}}
    return {"type": "boolean"} if field["type"] == "boolean" else TEXT
