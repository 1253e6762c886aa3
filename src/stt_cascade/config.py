"""The settings of both tiers.

Every setting comes from one `.env` file, named by `CONFIG_PATH`; none from the process
environment. `config_file.py` reads it.
"""

from __future__ import annotations

import unicodedata
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import httpx2
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stt_cascade.engine.languages import allowed, whisper_code

MIB = 1024 * 1024
# What a multipart body may hold besides the file: boundaries, part headers, the other fields.
ENVELOPE_BYTES = 64 * 1024
# Bounds that nobody needs to go beyond, and without which a typing error is a limit all the same:
# nothing is as short as 1e-300 s, and `inf` is no limit at all.
SHORTEST_CLIP_S = 0.1
LEAST_TIME_S = 0.01
# One request in three hours, which is the longest Retry-After there can be.
LEAST_RATE = 0.0001
MOST_RATE = 1_000_000

ComputeType = Literal[
    "auto",
    "default",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
]


class ConfigError(SystemExit):
    """The settings cannot be used; `str()` has one line per mistake.

    A `SystemExit`, so that a service that cannot start says why instead of showing a traceback.
    """


def _comma_separated(value: object) -> object:
    if not isinstance(value, str):
        return value
    items = tuple(item.strip() for item in value.split(",") if item.strip())
    if value.strip() and not items:
        # A template whose variables were empty, say. For keys it would mean: no key is needed.
        raise ValueError("nothing but commas")
    return items


def _language(tag: str) -> str:
    if (code := whisper_code(tag)) is None:
        raise ValueError(f"{tag} is none of {allowed()}")
    return code


def nothing_secret(address: str) -> bool:
    """Whether an address can be shown: no part of it could be a password or a token."""
    return not set("@?#").intersection(unicodedata.normalize("NFKC", address))  # as IDNA reads it


def _reachable(address: str) -> str:
    """An address that its HTTP client can parse, too, whose own error is not a `ValueError`."""
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise ValueError(str(error) if nothing_secret(address) else "not a URL") from None
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError("no such port")
    url.raw_host.decode("ascii").encode("idna")  # as a look-up of the name will
    return address


# Host and port: no sign, no other script's digits, which `int` would take.
_HOST = r"(\[[^\s/?#@\[\]]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?"
Address = Annotated[str, AfterValidator(_reachable)]
CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_comma_separated)]
Language = Annotated[str, AfterValidator(_language)]
Languages = Annotated[tuple[Language, ...], BeforeValidator(_comma_separated)]
# `unix`: whoever connects through the Unix socket that the service listens on.
Proxy = Literal["unix"] | IPv4Network | IPv6Network
Proxies = Annotated[tuple[Proxy, ...], BeforeValidator(_comma_separated)]


class TierConfig(BaseSettings):
    """What both tiers can be told. A field's description is its documentation."""

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        enable_decoding=False,
        hide_input_in_errors=True,  # it may be a key
    )

    tier: ClassVar[Literal["primary", "fallback"]]
    default_file: ClassVar[str]

    _source: Path | None = PrivateAttr(None)

    model_path: Path
    model_name: str | None = Field(
        None, description="name shown in answers and metrics; default: from the model's folder"
    )
    device: Literal["cpu", "cuda", "auto"] = Field("cuda", description="where the model runs")
    device_index: int = Field(0, ge=0, le=255, description="which GPU")
    compute_type: ComputeType = Field("default", description="CTranslate2's number format")
    cpu_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="threads of one inference; default 2, on a CPU the cores / MAX_CONCURRENCY",
    )
    max_concurrency: int = Field(2, ge=1, le=64, description="inferences at the same time")
    max_queue: int | None = Field(
        None,
        ge=0,
        le=10_000_000,
        description="requests that may wait for a slot; default 8 x MAX_CONCURRENCY",
    )
    max_queue_audio_seconds: float | None = Field(
        None,
        ge=SHORTEST_CLIP_S,
        le=1_000_000,
        description="seconds of audio that may wait for a slot; none: no such limit",
    )
    beam_size: int = Field(1, ge=1, le=16, description="hypotheses kept while decoding; 1: greedy")
    doubt_beam_size: int = Field(
        1, ge=1, le=16, description="hypotheses of the second look at a doubtful text; 1: none"
    )
    short_clip_encoding: bool = Field(
        False, description="encode what was said, not 30 s of it and silence"
    )
    languages: Languages = Field(
        (), description="comma-separated codes that detection may choose from; none: all"
    )
    cache_dir: Path | None = Field(
        None, description="folder for what the warm-up prepares; none: prepare it at each start"
    )
    vad: bool = Field(True, description="detect speech first, and answer silence without inference")

    max_upload_mb: float = Field(
        16, ge=0.001, le=1024, description="largest audio file, in units of 1,048,576 bytes"
    )
    max_uploads: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="uploads held at once; default 2 x (MAX_CONCURRENCY + MAX_QUEUE), at least 16",
    )
    max_audio_seconds: float = Field(
        600, ge=SHORTEST_CLIP_S, le=14400, description="longest decoded audio"
    )
    request_timeout_s: float = Field(
        60,
        ge=LEAST_TIME_S,
        le=3600,
        description="deadline of a request; `X-Deadline-Ms` can shorten it",
    )

    infer_timeout_s: float = Field(
        120, ge=LEAST_TIME_S, le=3600, description="an inference that takes longer makes health 503"
    )
    engine_failures: int = Field(
        5,
        ge=1,
        le=10_000,
        description="failed inferences in a row after which the engine is tried on a clip of ours",
    )
    wedged_exit_s: float = Field(
        10, ge=0, le=3600, description="then the process ends after so long, with status 70"
    )
    drain_timeout_s: float = Field(
        30,
        ge=LEAST_TIME_S,
        le=3600,
        description="longest time from SIGTERM to the end of the process",
    )

    api_keys: Keys = Field((), description="comma-separated bearer keys; none at all means open")
    api_keys_file: Path | None = Field(
        None, description="further keys, one a line; re-read when the file changes"
    )
    metrics_keys: Keys = Field(
        (), description="comma-separated bearer keys of the metrics; none at all means open"
    )
    metrics_keys_file: Path | None = Field(
        None, description="further keys of the metrics, one a line; re-read when the file changes"
    )
    rate_limit_rps: float = Field(
        15,
        ge=LEAST_RATE,
        le=MOST_RATE,
        description="requests per second and key (client address where no key is set)",
    )
    rate_limit_burst: int = Field(
        30, ge=1, le=MOST_RATE, description="requests that may come at once"
    )
    trusted_proxies: Proxies = Field(
        (), description="comma-separated proxies whose `X-Forwarded-For` counts; none: nobody's"
    )
    cors_origins: CommaSeparated = Field(
        (), description="comma-separated origins that browsers may call from; none: no CORS"
    )

    server_commit: str = Field("unknown", description="what is deployed: a git SHA or a date tag")
    log_format: Literal["json", "console"] = Field("json", description="how log lines look")
    log_text: bool = Field(False, description="log the transcribed text, which is personal data")
    otlp_endpoint: Address | None = Field(
        None,
        pattern=rf"^https?://{_HOST}(/[^\s?#]*)?$",
        examples=["http://otel-collector:4318"],
        description="collector that traces are sent to, by OTLP over HTTP; none: no tracing",
    )
    slo_clip_seconds: float = Field(
        10,
        ge=SHORTEST_CLIP_S,
        le=14400,
        description="longest clip that `stt_slo_request_seconds` counts",
    )

    @property
    def source(self) -> Path | None:
        """The file that the settings were read from; None if they were given in code."""
        return self._source

    @property
    def model(self) -> str:
        """The model's short name: `MODEL_NAME`, or `small` from `/models/whisper-small-ct2`."""
        return self.model_name or self.model_path.name.removeprefix("whisper-").removesuffix("-ct2")

    @property
    def queue_limit(self) -> int:
        """Requests that may wait for a slot."""
        return 8 * self.max_concurrency if self.max_queue is None else self.max_queue

    @property
    def upload_places(self) -> int:
        """Uploads that may be held at once: for each that is worked on or waits, one that comes."""
        if self.max_uploads is not None:
            return self.max_uploads
        return max(16, 2 * (self.max_concurrency + self.queue_limit))

    @property
    def upload_limit(self) -> int:
        """Bytes that one audio file may have."""
        return int(self.max_upload_mb * MIB)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The process environment never decides, and `load` reads the file itself: it needs the
        # line numbers, and values taken literally (pydantic-settings expands ${VAR} from the
        # environment).
        return (init_settings,)


class PrimaryConfig(TierConfig):
    """The settings of the primary."""

    tier = "primary"
    default_file = "stt_primary.env"

    model_path: Path = Field(alias="CT2_SMALL_PATH", description="folder of the CTranslate2 model")
    compute_type: ComputeType = Field("float16", description="CTranslate2's number format")
    doubt_beam_size: int = Field(
        5, ge=1, le=16, description="hypotheses of the second look at a doubtful text; 1: none"
    )
    short_clip_encoding: bool = Field(
        True, description="encode what was said, not 30 s of it and silence"
    )

    conf_logprob_threshold: float = Field(
        0.55, ge=0, le=1, description="escalate under this mean token probability"
    )
    conf_langprob_threshold: float = Field(
        0.70, ge=0, le=1, description="escalate under this probability of the detected language"
    )
    min_words_for_conf: int = Field(
        3, ge=0, le=10_000, description="escalate a text of fewer words"
    )
    conf_weakest_threshold: float = Field(
        0, ge=0, le=1, description="escalate under this probability of the 3 weakest tokens; 0: off"
    )

    fallback_url: Address = Field(
        pattern=rf"^https?://{_HOST}/?$",
        examples=["http://stt-fallback:8082"],
        description="address of the fallback",
    )
    fallback_api_key: SecretStr | None = Field(
        None, description="bearer key that the fallback accepts"
    )
    fallback_api_key_file: Path | None = Field(
        None, description="file with that key; re-read when it changes"
    )
    fallback_ca_file: Path | None = Field(
        None, description="PEM file of who vouches for the fallback; none: as the system trusts"
    )
    fallback_cert_file: Path | None = Field(
        None, description="PEM file with the certificate that the primary shows the fallback"
    )
    fallback_key_file: Path | None = Field(
        None, description="PEM file with its key; all three are re-read when they change"
    )
    fallback_timeout_s: float = Field(
        30, ge=LEAST_TIME_S, le=3600, description="longest wait for the fallback"
    )
    on_fallback_failure: Literal["error", "primary"] = Field(
        "error", description="answer 502, or the doubtful text with `degraded: true`"
    )
    final_pick: Literal["fallback", "best"] = Field(
        "fallback", description="the text after a doubt: the fallback's, or the surer of the two"
    )
    shadow_rate: float = Field(
        0, ge=0, le=1, description="share of accepted clips that the fallback hears all the same"
    )


class FallbackConfig(TierConfig):
    """The settings of the fallback."""

    tier = "fallback"
    default_file = "stt_fallback.env"

    model_path: Path = Field(alias="CT2_MEDIUM_PATH", description="folder of the CTranslate2 model")
    compute_type: ComputeType = Field("int8", description="CTranslate2's number format")
    beam_size: int = Field(5, ge=1, le=16, description="hypotheses kept while decoding; 1: greedy")
    rate_limit_rps: float = Field(
        60,
        ge=LEAST_RATE,
        le=MOST_RATE,
        description="requests per second and key (client address where no key is set)",
    )
    rate_limit_burst: int = Field(
        120, ge=1, le=MOST_RATE, description="requests that may come at once"
    )
