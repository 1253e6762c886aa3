"""Labelled clips, and how wrong a text is."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stt_cascade.engine.languages import whisper_code
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples

MANIFEST = "manifest.jsonl"
# The name, in reports, of the language of clips whose manifest names none.
UNKNOWN = "unknown"
# Languages that are written without spaces between words.
UNSPACED = frozenset({"bo", "ja", "km", "lo", "my", "th", "yue", "zh"})
_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")


@dataclass(frozen=True)
class Labelled:
    """A clip and what is said in it; an empty reference: nobody speaks.

    Attributes:
        language, speaker: empty where the manifest names none.
    """

    file: Path
    text: str
    language: str
    source: str
    speaker: str = ""


@dataclass(frozen=True)
class WordErrors:
    """Counts for one text; `words` are the reference's, or its characters: see `unit`."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def read_manifest(folder: Path) -> list[Labelled]:
    """The clips of a folder's manifest: a JSON object a line with file, text, language, and
    source and speaker where they are known.

    Raises:
        OSError, ValueError: the manifest is not there, empty, or not of that form.
    """
    clips = []
    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            values = {"file": entry["file"], "text": entry["text"]}
            # Where nobody speaks there is no language.
            language = entry["language"] or ""
            values["language"] = (whisper_code(language) if language else "") or language
            values |= {name: entry.get(name) or "" for name in ("source", "speaker")}
        except KeyError as error:
            raise ValueError(f"line {number} has no {error}") from None
        except (ValueError, TypeError):
            raise ValueError(f"line {number} is no JSON object") from None
        if wrong := [name for name, value in values.items() if not isinstance(value, str)]:
            raise ValueError(f"line {number}: {wrong[0]!r} is no text")
        clips.append(Labelled(folder / values.pop("file"), **values))
    if not clips:
        raise ValueError("it names no clip")
    return clips


def read_prompts(share: Path) -> list[Labelled]:
    """Telephone prompts as Debian's `asterisk-core-sounds-LANG-wav` packages install them.

    Args:
        share: what is `/usr/share` where they are installed.
    """
    return [
        clip
        for texts in sorted(share.glob("doc/asterisk-core-sounds-*/core-sounds-*.txt.gz"))
        for clip in _prompts_of(share, texts)
    ]


def _prompts_of(share: Path, texts: Path) -> Iterator[Labelled]:
    language = texts.name.removeprefix("core-sounds-").removesuffix(".txt.gz")
    # Debian links a language's default voice under shorter names.
    found = share.glob(f"asterisk/sounds/{language}_*")
    folders = sorted(folder for folder in found if not folder.is_symlink())
    with gzip.open(texts, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, separator, text = line.partition(":")
            text = text.strip()
            # Brackets describe sounds; a single word is often a name or a letter spelt anyhow.
            if line.startswith(";") or not separator or any(mark in text for mark in "[(<"):
                continue
            for folder in folders:
                file = folder / f"{name.strip()}.wav"
                if len(text.split()) > 1 and file.is_file():
                    yield Labelled(file, text, language, f"prompts {language}")


def joined(
    clips: Iterable[tuple[Labelled, Samples]], seconds: float
) -> list[tuple[Labelled, Samples]]:
    """Spoken clips of a source in a row, half a second of silence between, up to that length.

    What is left over at the end of a source, and clips that are longer by themselves, are dropped.
    """
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    rows: dict[tuple[str, str], list[tuple[Labelled, Samples]]] = {}
    full: list[list[tuple[Labelled, Samples]]] = []
    for clip, samples in clips:
        if not clip.text:
            continue
        row = rows.setdefault((clip.source, clip.language), [])
        length = len(samples) + sum(len(other) + len(pause) for _, other in row)
        if length <= seconds * SAMPLE_RATE:
            row.append((clip, samples))
        elif row:
            full.append(row)
            fits = len(samples) <= seconds * SAMPLE_RATE
            rows[clip.source, clip.language] = [(clip, samples)] if fits else []
    return [
        (
            replace(row[0][0], text=" ".join(clip.text for clip, _ in row)),
            np.concatenate([part for _, samples in row for part in (samples, pause)][:-1]),
        )
        for row in full
    ]


def unit(languages: Iterable[str]) -> str:
    """What errors are counted in: words, or characters where words have no spaces between them."""
    counted = {_unit(language) for language in languages if language}
    return " and ".join(sorted(counted, reverse=True)) or "words"


def _unit(language: str) -> str:
    return "characters" if whisper_code(language) in UNSPACED else "words"


def word_errors(reference: str, heard: str, language: str) -> WordErrors:
    """Compare two texts, both normalized: in words, or in characters as `unit` says.

    Without a reference every word heard is an inserted one.
    """
    # Imported here: it takes a second, and a base install does not have it.
    import jiwer

    wanted, got = _normalized(reference, language), _normalized(heard, language)
    if not wanted:
        return WordErrors(0, 0, len(got), 0)
    counts = jiwer.process_words(" ".join(wanted), " ".join(got))
    return WordErrors(counts.substitutions, counts.deletions, counts.insertions, len(wanted))


def _normalized(text: str, language: str) -> list[str]:
    """The words or characters of a text, without case, punctuation and what is in brackets.

    English as is usual for Whisper. Its rules for other languages replace vowel signs by spaces,
    which tears the words of Hindi and Thai; here they stay.
    """
    if whisper_code(language) == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return str(EnglishTextNormalizer()(text)).split()
    text = _BRACKETED.sub("", unicodedata.normalize("NFKC", text).lower())
    kept = "".join(" " if unicodedata.category(each)[0] in "PS" else each for each in text)
    words = kept.split()
    return words if _unit(language) == "words" else list("".join(words))
