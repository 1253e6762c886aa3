"""Whisper on CTranslate2.

faster-whisper brings the model's surroundings (log-mel, tokenizer, prompt, word alignment).
Encoding and decoding are ours: a short clip's cost lies there, only the decode's own logits can say
how sure it was, and one encoding serves both the language detection and the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from stt_cascade.engine.decoding import Decoded, decode
from stt_cascade.engine.encoding import Encoder, Encoding, FullEncoder, ShortEncoder, ShortForm
from stt_cascade.engine.protocol import (
    SAMPLE_RATE,
    Options,
    Samples,
    Segment,
    Utterance,
    Word,
)
from stt_cascade.engine.tail import tail

SECONDS_PER_TIMESTAMP = 0.02
# Of a window that is decoded in two goes, each part is at least this long.
MIN_PART_SECONDS = 0.5
PREPEND_PUNCTUATION = "\"'“¿([{-"
APPEND_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  # full-width marks are meant


class WhisperEngine:
    """A Whisper model.

    Args:
        path: folder of a CTranslate2 conversion.
        device, device_index, compute_type: as CTranslate2 names them.
        cpu_threads: threads of one inference.
        workers: inferences at the same time. The caller's own gate must agree: CTranslate2 runs
            more than this one after the other.
        beam_size: hypotheses kept; 1 is greedy.
        short: encode what was said, in that form; None: 30 s whatever was said.
        languages: restricts the detection; empty: all that the model knows.
        cache: folder for what the warm-up prepares; None: prepare it at each start.

    Raises:
        OSError, RuntimeError, ValueError: the folder holds no model, or the device cannot run it,
            or it knows none of the languages.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        device_index: int = 0,
        compute_type: str = "default",
        cpu_threads: int = 1,
        workers: int = 1,
        beam_size: int = 1,
        short: ShortForm | None = None,
        languages: frozenset[str] = frozenset(),
        cache: Path | None = None,
    ) -> None:
        # faster-whisper would take a missing folder for a name and ask the model hub for it.
        if not (path / "model.bin").is_file():
            raise FileNotFoundError(f"no CTranslate2 model in {path} (model.bin is missing)")
        self._model = WhisperModel(
            str(path),
            device=device,
            device_index=device_index,
            compute_type=compute_type,
            cpu_threads=cpu_threads,
            num_workers=workers,
        )
        self._beam_size = beam_size
        # faster-whisper lists Cantonese for models too that have no token for it.
        token = self._model.hf_tokenizer.token_to_id
        self._languages = frozenset(
            code for code in self._model.supported_languages if token(f"<|{code}|>") is not None
        )
        self._detectable = languages & self._languages if languages else self._languages
        if not self._detectable:
            raise ValueError(f"the model knows none of the languages {', '.join(languages)}")
        full = FullEncoder(self._model)
        self._full: Encoder = full
        self._encoder: Encoder = full
        if short is not None:
            states = tail(self._model, path / "model.bin", short.spoken_tail, cache)
            self._encoder = ShortEncoder(self._model, short, states, full)

    @property
    def languages(self) -> frozenset[str]:
        return self._languages

    @property
    def device(self) -> str:
        return str(self._model.model.device)

    def warm_up(self) -> None:
        self.transcribe(np.zeros(SAMPLE_RATE, np.float32), Options(timestamps="word"))

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        return self.decode([self.encode(samples)], options)[0]

    def encode(self, samples: Samples) -> Encoding:
        return self._encoder.encode(samples)

    def decode(self, encodings: Sequence[Encoding], options: Options) -> list[Utterance]:
        language, probability = self._language(encodings[0], options)
        tokenizer = self._tokenizer(language, options)
        all_decoded = decode(self._model, encodings, tokenizer, options, beam_size=self._beam_size)
        return [
            # Once, and in the same slot: the net under the short encoding.
            self._in_full(encoding, options)
            if decoded.suspect and self._encoder is not self._full
            else self._utterance(encoding, decoded, tokenizer, options, probability)
            for encoding, decoded in zip(encodings, all_decoded, strict=True)
        ]

    def _in_full(self, encoding: Encoding, options: Options) -> Utterance:
        encoding = self._full.encode(encoding.samples)
        language, probability = self._language(encoding, options)
        tokenizer = self._tokenizer(language, options)
        (decoded,) = decode(self._model, [encoding], tokenizer, options, beam_size=self._beam_size)
        utterance = self._utterance(encoding, decoded, tokenizer, options, probability)
        return replace(utterance, full_context=True)

    def _utterance(
        self,
        encoding: Encoding,
        decoded: Decoded,
        tokenizer: Tokenizer,
        options: Options,
        probability: float | None,
    ) -> Utterance:
        duration = len(encoding.samples) / SAMPLE_RATE
        segments = self._segments(encoding, decoded, tokenizer, options, duration)
        heard_until = None
        if segments and broke_off(decoded.tokens, tokenizer.timestamp_begin):
            heard_until = segments[-1].end
            if min(heard_until, duration - heard_until) < MIN_PART_SECONDS:
                heard_until = None
        return Utterance(
            language=tokenizer.language_code,
            language_probability=probability,
            segments=segments,
            avg_logprob=decoded.avg_logprob,
            tokens=len(decoded.tokens) + 1,
            weakest=math.exp(decoded.weakest),
            heard_until=heard_until,
        )

    def _language(self, encoding: Encoding, options: Options) -> tuple[str, float | None]:
        """The language, and how probable it is if it was detected."""
        if len(self._languages) == 1:
            return next(iter(self._languages)), None
        if options.language is not None:
            return options.language, None
        found = [
            (token.removeprefix("<|").removesuffix("|>"), float(probability))
            for token, probability in self._model.model.detect_language(encoding.output)[0]
        ]
        allowed = [item for item in found if item[0] in self._detectable]
        language, probability = allowed[0]
        # Among the allowed ones alone: the rest cannot be spoken.
        total = sum(item[1] for item in allowed)
        return language, probability / total if total else 0.0

    def _tokenizer(self, language: str, options: Options) -> Tokenizer:
        return Tokenizer(
            self._model.hf_tokenizer,
            self._model.model.is_multilingual,
            task=options.task,
            language=language,
        )

    def _segments(
        self,
        encoding: Encoding,
        decoded: Decoded,
        tokenizer: Tokenizer,
        options: Options,
        duration: float,
    ) -> tuple[Segment, ...]:
        pieces: list[dict[str, Any]] = [
            {"seek": 0, "start": start, "end": end, "tokens": tokens}
            for start, end, tokens in split_at_timestamps(
                decoded.tokens, tokenizer.timestamp_begin, duration
            )
        ]
        if options.timestamps == "word" and pieces:
            self._model.add_word_timestamps(
                [pieces],
                tokenizer,
                encoding.output,
                encoding.frames,
                PREPEND_PUNCTUATION,
                APPEND_PUNCTUATION,
                0.0,
            )
        return tuple(
            Segment(
                start=min(piece["start"], duration),
                end=min(piece["end"], duration),
                text=text,
                avg_logprob=decoded.avg_logprob,
                no_speech_prob=decoded.no_speech_prob,
                words=tuple(
                    Word(
                        start=min(float(word["start"]), duration),
                        end=min(float(word["end"]), duration),
                        word=word["word"],
                        probability=float(word["probability"]),
                    )
                    for word in piece.get("words", ())
                ),
            )
            for piece in pieces
            if (text := tokenizer.decode(piece["tokens"]).strip())
        )


def split_at_timestamps(
    tokens: list[int], timestamp_begin: int, duration: float
) -> list[tuple[float, float, list[int]]]:
    """A window's text tokens as (start, end, tokens), times in seconds within the window.

    Text after the last timestamp runs to the window's end; without any timestamp, all of it does.
    """
    pieces: list[tuple[float, float, list[int]]] = []
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < timestamp_begin:
            text.append(token)
            continue
        time = (token - timestamp_begin) * SECONDS_PER_TIMESTAMP
        if text:
            pieces.append((start, time, text))
            text = []
        start = time
    if text:
        pieces.append((start, duration, text))
    return pieces


def broke_off(tokens: list[int], timestamp_begin: int) -> bool:
    """Whether Whisper left a window's end for another decode.

    Source: a pair of timestamps at the end says that more is said, a single one that nothing is
    (openai-whisper's `transcribe.py`, `single_timestamp_ending`).
    """
    return len(tokens) >= 2 and min(tokens[-2:]) >= timestamp_begin
