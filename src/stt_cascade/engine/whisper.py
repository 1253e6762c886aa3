"""Whisper on CTranslate2.

faster-whisper brings the model's surroundings (log-mel, tokenizer, prompt, word alignment).
Encoding and decoding are ours: a short clip's cost lies there, only the decode's own logits can say
how sure it was, and one encoding serves both the language detection and the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from stt_cascade.engine.decoding import Decoded, decode, warm_up
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
from stt_cascade.engine.timestamps import broke_off, split_at_timestamps

# Of a window that is decoded in two goes, each part is at least this long.
MIN_PART_SECONDS = 0.5
# A window ends with speech, so a last timestamp so long before its end has left some of that out,
# whatever Whisper says.
UNHEARD_SECONDS = 1.0
# A less likely language is not worth a decode of its own.
MIN_LANGUAGE_PROBABILITY = 0.1
# Of a clip of one word, less than 30 s of context makes the detection doubt what 30 s tell.
SURE_LANGUAGE_PROBABILITY = 0.9
WARM_UP_SECONDS = 1.0
PREPEND_PUNCTUATION = "\"'“¿([{-"
APPEND_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  # full-width marks are meant


@dataclass(frozen=True, slots=True)
class _Heard:
    """A window as heard in one language; `probability` is the language's, if it was detected."""

    encoding: Encoding
    tokenizer: Tokenizer
    probability: float | None
    decoded: Decoded
    full_context: bool = False
    doubted: bool = False


class WhisperEngine:
    """A Whisper model.

    Args:
        path: folder of a CTranslate2 conversion.
        device, device_index, compute_type: as CTranslate2 names them.
        cpu_threads: threads of one inference.
        workers: inferences at the same time. The caller's own gate must agree: CTranslate2 runs
            more than this one after the other.
        beam_size: hypotheses kept; 1 is greedy.
        doubt_beam_size: hypotheses of a second look at a window whose text is in doubt; no more
            than `beam_size`: none is taken.
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
        doubt_beam_size: int = 1,
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
        self._doubt_beam_size = doubt_beam_size
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
        # With the beam of a second look, which comes to the GPU as late as a first doubtful text.
        beam = max(self._beam_size, self._doubt_beam_size)
        tokenizer = self._tokenizer(min(self._languages), Options())
        warm_up(self._model, tokenizer, WARM_UP_SECONDS, beam)
        self.transcribe(np.zeros(SAMPLE_RATE, np.float32), Options(timestamps="word"))

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        return self.decode([self.encode(samples)], options)[0]

    def encode(self, samples: Samples) -> Encoding:
        return self._encoder.encode(samples)

    def decode(self, encodings: Sequence[Encoding], options: Options) -> list[Utterance]:
        return [
            self._utterance(self._checked(heard, options), options)
            for heard in self._hear(encodings, options)
        ]

    def _checked(self, heard: _Heard, options: Options) -> _Heard:
        """The same, or what a second try made of it: one at most, and in the same slot."""
        if heard.decoded.suspect and self._encoder is not self._full:
            # The net under the short encoding.
            (again,) = self._hear([self._full.encode(heard.encoding.samples)], options)
            return replace(again, full_context=True)
        if heard.decoded.doubtful and self._doubt_beam_size > self._beam_size:
            # Alone: each hypothesis of each window takes the memory of a window.
            (wider,) = self._decode(
                [heard.encoding], [heard.tokenizer], options, self._doubt_beam_size
            )
            decoded = heard.decoded if wider.suspect else wider
            return replace(heard, decoded=decoded, doubted=True)
        return heard

    def _hear(self, encodings: Sequence[Encoding], options: Options) -> list[_Heard]:
        language = options.language
        if len(self._languages) == 1:
            (language,) = self._languages
        if language is not None:
            tokenizer = self._tokenizer(language, options)
            decoded = self._decode(encodings, [tokenizer] * len(encodings), options)
            return [
                _Heard(encoding, tokenizer, None, one)
                for encoding, one in zip(encodings, decoded, strict=True)
            ]
        first, *rest = encodings
        heard = self._hear_some_language(first, options)
        known = replace(options, language=heard.tokenizer.language_code)
        return [heard, *(self._hear(rest, known) if rest else ())]

    def _hear_some_language(self, encoding: Encoding, options: Options) -> _Heard:
        """Decode in each language that it may be, together; the likeliest pair of both counts."""
        found = self._likely_languages(encoding)
        tokenizers = [self._tokenizer(language, options) for language, _ in found]
        decoded = self._decode([encoding] * len(found), tokenizers, options)

        def likelihood(index: int) -> tuple[bool, float]:
            probability, text = found[index][1], decoded[index]
            return not text.suspect, text.logprob + (math.log(probability) if probability else 0.0)

        best = max(range(len(found)), key=likelihood)
        return _Heard(encoding, tokenizers[best], found[best][1], decoded[best])

    def _likely_languages(self, encoding: Encoding) -> list[tuple[str, float]]:
        detect = self._model.model.detect_language
        found = likely_languages(detect(encoding.own)[0], self._detectable)
        if found[0][1] >= SURE_LANGUAGE_PROBABILITY or encoding.own is encoding.output:
            return found
        return likely_languages(detect(self._encoder.whole(encoding))[0], self._detectable)

    def _decode(
        self,
        encodings: Sequence[Encoding],
        tokenizers: Sequence[Tokenizer],
        options: Options,
        beam_size: int | None = None,
    ) -> list[Decoded]:
        return decode(
            self._model, encodings, tokenizers, options, beam_size=beam_size or self._beam_size
        )

    def _utterance(self, heard: _Heard, options: Options) -> Utterance:
        decoded, tokenizer = heard.decoded, heard.tokenizer
        duration = len(heard.encoding.samples) / SAMPLE_RATE
        segments = self._segments(heard, options, duration)
        heard_until = segments[-1].end if segments else None
        if heard_until is not None:
            broken_off = broke_off(decoded.tokens, tokenizer.timestamp_begin)
            unheard = MIN_PART_SECONDS if broken_off else UNHEARD_SECONDS
            if heard_until < MIN_PART_SECONDS or duration - heard_until < unheard:
                heard_until = None
        return Utterance(
            language=tokenizer.language_code,
            language_probability=heard.probability,
            segments=segments,
            avg_logprob=decoded.avg_logprob,
            tokens=len(decoded.tokens) + 1,
            weakest=math.exp(decoded.weakest),
            heard_until=heard_until,
            full_context=heard.full_context,
            doubted=heard.doubted,
        )

    def _tokenizer(self, language: str, options: Options) -> Tokenizer:
        return Tokenizer(
            self._model.hf_tokenizer,
            self._model.model.is_multilingual,
            task=options.task,
            language=language,
        )

    def _segments(self, heard: _Heard, options: Options, duration: float) -> tuple[Segment, ...]:
        encoding, tokenizer, decoded = heard.encoding, heard.tokenizer, heard.decoded
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


def likely_languages(
    detected: Sequence[tuple[str, float]], allowed: frozenset[str]
) -> list[tuple[str, float]]:
    """The languages worth hearing a window in: the likeliest, and the next unless it is unlikely.

    Args:
        detected: CTranslate2's result: tokens such as `<|en|>` and probabilities, likeliest first.
        allowed: codes, of which at least one was detected.

    Returns:
        Codes and probabilities as detected: what is spoken may be none of the allowed ones.
    """
    found = [
        (code, float(probability))
        for token, probability in detected
        if (code := token.removeprefix("<|").removesuffix("|>")) in allowed
    ]
    total = sum(probability for _, probability in found) or 1.0
    first, *others = found[:2]
    return [first, *(other for other in others if other[1] / total >= MIN_LANGUAGE_PROBABILITY)]
