"""Whisper on CTranslate2.

faster-whisper brings the model's surroundings (log-mel, tokenizer, prompt, word alignment); the
decoding itself is ours, because only the decode's own logits can say how sure it was, and one
encoding serves both the language detection and the text.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.audio import pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens

from stt_cascade.engine.protocol import (
    SAMPLE_RATE,
    Clip,
    Options,
    Samples,
    Segment,
    Span,
    Transcript,
    Word,
)
from stt_cascade.engine.scores import WindowScores, chosen_logprobs, combine, weakest_logprob
from stt_cascade.engine.windows import windows

FRAMES_PER_SECOND = 100
WINDOW_FRAMES = 3000
SECONDS_PER_TIMESTAMP = 0.02
# Whisper's own constant: a text may start at most this late in its window.
MAX_INITIAL_TIMESTAMP = 50
# Of a window that is decoded in two goes, each part is at least this long.
MIN_PART_SECONDS = 0.5
PREPEND_PUNCTUATION = "\"'“¿([{-"
APPEND_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  # full-width marks are meant


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoder's output for one window, and how many of its frames are the clip's."""

    output: Any  # ctranslate2.StorageView, shape (1, 1500, hidden)
    frames: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """One window's tokens (end token excluded) and what the decoder thought of them."""

    tokens: list[int]
    scores: WindowScores
    no_speech_prob: float


class WhisperEngine:
    """A Whisper model.

    Args:
        path: folder of a CTranslate2 conversion.
        device, device_index, compute_type: as CTranslate2 names them.
        cpu_threads: threads of one inference.
        workers: inferences at the same time. The caller's own gate must agree: CTranslate2 runs
            more than this one after the other.
        beam_size: hypotheses kept; 1 is greedy.

    Raises:
        OSError, RuntimeError, ValueError: the folder holds no model, or the device cannot run it.
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

    @property
    def languages(self) -> frozenset[str]:
        return self._languages

    @property
    def device(self) -> str:
        return str(self._model.model.device)

    def warm_up(self) -> None:
        second = np.zeros(SAMPLE_RATE, np.float32)
        self.transcribe(Clip(second, (Span(0, len(second)),)), Options())

    def transcribe(self, clip: Clip, options: Options) -> Transcript:
        language, probability = options.language, None
        if len(self.languages) == 1:
            (language,) = self.languages
        segments: list[Segment] = []
        scores: list[WindowScores] = []
        left = deque(windows(clip.speech))
        while left:
            window = left.popleft()
            encoding = self._encode(clip.samples[window.start : window.end])
            if language is None:
                language, probability = self._detect_language(encoding)
            tokenizer = self._tokenizer(language, options)
            decoded = self._decode(encoding, tokenizer, options)
            scores.append(decoded.scores)
            pieces = self._segments(encoding, decoded, tokenizer, options, window)
            segments += pieces
            if pieces and broke_off(decoded.tokens, tokenizer.timestamp_begin):
                rest = Span(round(pieces[-1].end * SAMPLE_RATE), window.end)
                if min(rest.seconds, window.seconds - rest.seconds) >= MIN_PART_SECONDS:
                    left.appendleft(rest)
        if language is None:
            raise ValueError("a clip without speech has no transcript")
        logprob, weakest = combine(scores)
        return Transcript(
            text=" ".join(segment.text for segment in segments),
            language=language,
            language_probability=probability,
            segments=tuple(segments),
            logprob=logprob,
            weakest=weakest,
        )

    def _encode(self, samples: Samples) -> Encoding:
        features = self._model.feature_extractor(samples)
        frames = min(features.shape[-1] - 1, WINDOW_FRAMES)
        return Encoding(self._model.encode(pad_or_trim(features[:, :frames])), frames)

    def _detect_language(self, encoding: Encoding) -> tuple[str, float]:
        token, probability = self._model.model.detect_language(encoding.output)[0][0]
        return token.removeprefix("<|").removesuffix("|>"), float(probability)

    def _tokenizer(self, language: str, options: Options) -> Tokenizer:
        return Tokenizer(
            self._model.hf_tokenizer,
            self._model.model.is_multilingual,
            task=options.task,
            language=language,
        )

    def _decode(self, encoding: Encoding, tokenizer: Tokenizer, options: Options) -> Decoded:
        history = tokenizer.encode(" " + options.prompt.strip()) if options.prompt else []
        prompt = self._model.get_prompt(
            tokenizer, history, without_timestamps=options.timestamps == "none"
        )
        greedy = self._beam_size == 1
        result = self._model.model.generate(
            encoding.output,
            [prompt],
            beam_size=self._beam_size,
            max_length=self._model.max_length,
            return_scores=True,
            return_no_speech_prob=True,
            # With a beam, CTranslate2 hands over one step's logits only.
            return_logits_vocab=greedy,
            suppress_tokens=get_suppressed_tokens(tokenizer, [-1]),
            max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
        )[0]
        tokens: list[int] = list(result.sequences_ids[0])
        text_tokens = [token for token in tokens if token < tokenizer.eot]
        if greedy:
            steps = (_to_numpy(step) for step in result.logits[0])
            logprobs = [
                logprob
                for token, logprob in zip(tokens, chosen_logprobs(steps, tokens), strict=True)
                if token < tokenizer.eot
            ]
        else:
            logprobs = self._aligned_logprobs(encoding, tokenizer, text_tokens)
        return Decoded(
            tokens=tokens,
            scores=WindowScores(
                # The score is the sum over the tokens, divided by their number; faster-whisper
                # counts the end token in.
                avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
                tokens=len(tokens) + 1,
                weakest=weakest_logprob(logprobs),
                seconds=encoding.frames / FRAMES_PER_SECOND,
            ),
            no_speech_prob=float(result.no_speech_prob),
        )

    def _aligned_logprobs(
        self, encoding: Encoding, tokenizer: Tokenizer, text_tokens: list[int]
    ) -> list[float]:
        if not text_tokens:
            return []
        aligned = self._model.model.align(
            encoding.output, tokenizer.sot_sequence, [text_tokens], encoding.frames
        )[0]
        # A probability that underflowed to 0 still needs a logarithm.
        floor = np.finfo(np.float32).tiny
        return np.log(np.maximum(aligned.text_token_probs, floor)).tolist()  # type: ignore[no-any-return]

    def _segments(
        self,
        encoding: Encoding,
        decoded: Decoded,
        tokenizer: Tokenizer,
        options: Options,
        window: Span,
    ) -> list[Segment]:
        offset = window.start / SAMPLE_RATE
        pieces: list[dict[str, Any]] = [
            {"seek": 0, "start": start, "end": end, "tokens": tokens}
            for start, end, tokens in split_at_timestamps(
                decoded.tokens, tokenizer.timestamp_begin, window.seconds
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
        return [
            Segment(
                start=round(offset + piece["start"], 3),
                end=round(offset + min(piece["end"], window.seconds), 3),
                text=text,
                avg_logprob=decoded.scores.avg_logprob,
                no_speech_prob=decoded.no_speech_prob,
                words=tuple(
                    Word(
                        start=round(offset + float(word["start"]), 3),
                        end=round(offset + float(word["end"]), 3),
                        word=word["word"],
                        probability=float(word["probability"]),
                    )
                    for word in piece.get("words", ())
                ),
            )
            for piece in pieces
            if (text := tokenizer.decode(piece["tokens"]).strip())
        ]


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


def _to_numpy(logits: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One step's logits, wherever they are, as float32 of shape (vocabulary,)."""
    if logits.device != "cpu":
        logits = logits.to_device(ctranslate2.Device.cpu)
    return np.asarray(logits).astype(np.float32, copy=False).reshape(-1)
