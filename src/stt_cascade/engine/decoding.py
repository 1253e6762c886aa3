"""Decoding an encoded window, the scores of the decode, and the net under it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_compression_ratio, get_suppressed_tokens

from stt_cascade.engine.encoding import FRAMES_PER_SECOND, Encoding, stack, to_host
from stt_cascade.engine.protocol import SAMPLE_RATE, Options
from stt_cascade.engine.scores import chosen_logprobs, weakest_logprob

# Whisper's own constant: a text may start at most this late (in steps of 20 ms) in its window.
MAX_INITIAL_TIMESTAMP = 50
# Tokens of prompt and text that Whisper can take, and its own limit on the text of one window.
CONTEXT = 448
MAX_TOKENS = 224
WARM_UP_LENGTH = 16  # tokens, the prompt included
# Nobody speaks faster: the densest speech in the test sets has 8 tokens a second in Latin
# scripts, and scripts that the tokenizer knows only by bytes need about three times as many.
TOKENS_PER_SECOND = 25
TOKENS_AT_LEAST = 24
# A text is in doubt if a fifth of its tokens, the weakest ones and at least three, are less likely
# than this (geometric mean). docs/engine.md, "The second look", says what that costs and brings.
DOUBT = math.log(0.4)
DOUBT_SHARE = 0.2
# A longer text is left to the fallback: a second decode of it would take too long to be one.
DOUBT_TOKENS = 24
# faster-whisper's own threshold for a text that repeats itself.
MAX_COMPRESSION_RATIO = 2.4
# The same few tokens, this often in a row.
MAX_REPEATS = 4
LONGEST_REPEAT = 8  # tokens
# If no other form of decoding ends a loop, this many repetitions are kept.
MAX_KEPT = 8
# What stands for the bytes of half a character.
BROKEN_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Form:
    """How a window is decoded: two decodes in different forms are two opinions.

    Attributes:
        timestamps: Whisper says where its text lies, which keeps it from leaving out what follows
            a pause.
        ngram_limit: no run of so many tokens comes twice; 0: it may.
    """

    beam_size: int
    timestamps: bool
    prompt: bool = True
    ngram_limit: int = 0


# CTranslate2 leaves each step's logits on the GPU until they are scored. One call to `generate` may
# keep this much there: five windows of 30 s in float16, two in float32.
LOGITS_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Decoded:
    """One window's tokens (end token excluded) and what the decoder thought of them.

    Attributes:
        avg_logprob: as faster-whisper has it, end token included; timestamps excluded, so that it
            means the same with and without them.
        spoken: how many tokens that mean is over.
        weakest: mean log-probability of the weakest text tokens.
        broken: it breaks off at the limit of tokens or within a character.
        repeats: it repeats itself, as a decoder in a loop does, or a speaker.
        doubtful: its weakest tokens are so weak that a beam may find better ones, quickly.
    """

    tokens: list[int]
    text: str
    avg_logprob: float
    spoken: int
    weakest: float
    no_speech_prob: float
    broken: bool
    repeats: bool
    doubtful: bool

    @property
    def logprob(self) -> float:
        """Log-probability of the whole text, end token included."""
        return self.avg_logprob * self.spoken


def decode(
    model: WhisperModel,
    encodings: Sequence[Encoding],
    tokenizers: Sequence[Tokenizer],
    options: Options,
    form: Form,
) -> list[Decoded]:
    """Decode windows together, once: no ladder of temperatures, since who doubts can escalate.

    Args:
        tokenizers: for each window the one of its language.
    """
    caps = [token_cap(encoding.frames / FRAMES_PER_SECOND) for encoding in encodings]
    most = windows_at_once(model, max(caps), form.beam_size)
    if len(encodings) > most:
        parts = [slice(start, start + most) for start in range(0, len(encodings), most)]
        return [
            one
            for part in parts
            for one in decode(model, encodings[part], tokenizers[part], options, form)
        ]
    prompts = [_prompt(model, tokenizer, options, form) for tokenizer in tokenizers]
    # CTranslate2 allows half of `max_length`, as Whisper does with its context, and no more than
    # the prompt leaves of it.
    longest = max(map(len, prompts))
    length = min(CONTEXT, max(2 * max(caps), max(caps) + longest))
    caps = [min(cap, length - longest) for cap in caps]
    results = model.model.generate(
        stack(encodings),
        prompts,
        beam_size=form.beam_size,
        max_length=length,
        no_repeat_ngram_size=form.ngram_limit,
        return_scores=True,
        return_no_speech_prob=True,
        # With a beam, CTranslate2 hands over one step's logits only.
        return_logits_vocab=form.beam_size == 1,
        suppress_tokens=get_suppressed_tokens(tokenizers[0], [-1]),
        max_initial_timestamp_index=MAX_INITIAL_TIMESTAMP,
    )
    return [
        _decoded(model, encoding, tokenizer, result, cap)
        for encoding, tokenizer, result, cap in zip(
            encodings, tokenizers, results, caps, strict=True
        )
    ]


def windows_at_once(model: WhisperModel, steps: int, beam_size: int) -> int:
    """How many windows of `steps` steps each may have their logits on the GPU together.

    With a beam there are none, and on a CPU they take no memory that is scarce.
    """
    if beam_size > 1 or model.model.device != "cuda":
        return sys.maxsize
    size = 2 if model.model.compute_type.endswith("float16") else 4  # bfloat16, too
    vocabulary: int = model.hf_tokenizer.get_vocab_size()
    return max(1, LOGITS_BYTES // (steps * vocabulary * size))


def warm_up(model: WhisperModel, tokenizer: Tokenizer, seconds: float, beam_size: int) -> None:
    """Have each worker encode and decode some seconds of silence.

    Each has a stream, a cuBLAS handle and memory of its own, which its first work makes. Jobs that
    come together go to all of them, since each takes far longer than an idle worker needs to wake.
    """
    silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    features = model.feature_extractor(silence, padding=0)[np.newaxis]
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
    jobs = [
        job
        for _ in range(model.model.num_workers)
        for job in model.model.generate(
            view,
            [model.get_prompt(tokenizer, [], without_timestamps=True)],
            beam_size=beam_size,
            max_length=WARM_UP_LENGTH,
            asynchronous=True,
        )
    ]
    for job in jobs:
        job.result()


def _prompt(model: WhisperModel, tokenizer: Tokenizer, options: Options, form: Form) -> list[int]:
    asked = options.prompt.strip() if options.prompt and form.prompt else ""
    # A caller writes text: `<|de|>` in it is no command to the model.
    history = [token for token in tokenizer.encode(f" {asked}") if token < tokenizer.eot]
    end = tokenizer.decode(history)[-1:]
    if end.isalnum() or end in tuple(",;:-"):
        # Whisper would go on with an unfinished sentence, and leave out its beginning.
        history += tokenizer.encode(".")
    prompt: list[int] = model.get_prompt(
        tokenizer, history if asked else [], without_timestamps=not form.timestamps
    )
    return prompt


def _decoded(
    model: WhisperModel, encoding: Encoding, tokenizer: Tokenizer, result: Any, cap: int
) -> Decoded:
    tokens: list[int] = list(result.sequences_ids[0])
    text_tokens = [token for token in tokens if token < tokenizer.eot]
    spoken = len(text_tokens) + 1
    if result.logits:
        steps = (to_host(step).astype(np.float32).reshape(-1) for step in result.logits[0])
        # One step more: the end token's, unless the decode broke off.
        ended = [*tokens, tokenizer.eot]
        known = [
            logprob
            for token, logprob in zip(ended, chosen_logprobs(steps, ended), strict=False)
            if token <= tokenizer.eot
        ]
    else:
        known = _aligned_logprobs(model, encoding, tokenizer, text_tokens)
    logprobs = known[: len(text_tokens)]
    if len(tokens) > len(text_tokens):
        avg_logprob = sum(known) / spoken
    else:
        # The score is the sum over the tokens, divided by their number; faster-whisper counts the
        # end token in.
        avg_logprob = result.scores[0] * len(tokens) / spoken
    text = tokenizer.decode(text_tokens).strip()
    return Decoded(
        tokens=tokens,
        text=text,
        avg_logprob=avg_logprob,
        spoken=spoken,
        weakest=weakest_logprob(logprobs),
        no_speech_prob=float(result.no_speech_prob),
        broken=len(tokens) >= cap or BROKEN_CHARACTER in text,
        repeats=repeats(text_tokens, text),
        doubtful=len(logprobs) <= DOUBT_TOKENS and weakest_logprob(logprobs, DOUBT_SHARE) < DOUBT,
    )


def token_cap(seconds: float) -> int:
    """Tokens that a window of that length may have."""
    return min(MAX_TOKENS, TOKENS_AT_LEAST + math.ceil(TOKENS_PER_SECOND * seconds))


def repeats(tokens: list[int], text: str) -> bool:
    """Whether a text repeats itself as a decoder in a loop does."""
    if get_compression_ratio(text) > MAX_COMPRESSION_RATIO:
        return True
    for length in range(1, LONGEST_REPEAT + 1):
        run = 0
        for index in range(length, len(tokens)):
            run = run + 1 if tokens[index] == tokens[index - length] else 0
            if run >= length * (MAX_REPEATS - 1):
                return True
    return False


def cut_runs(tokens: list[int]) -> list[int]:
    """The tokens, with at most `MAX_KEPT` repetitions of anything in a row."""
    kept: list[int] = []
    for token in tokens:
        kept.append(token)
        for length in range(1, LONGEST_REPEAT + 1):
            run = kept[-length * (MAX_KEPT + 1) :]
            if len(run) == length * (MAX_KEPT + 1) and run == run[:length] * (MAX_KEPT + 1):
                del kept[-length:]
                break
    return kept


def _aligned_logprobs(
    model: WhisperModel, encoding: Encoding, tokenizer: Tokenizer, text_tokens: list[int]
) -> list[float]:
    if not text_tokens:
        return []
    aligned = model.model.align(
        encoding.output, tokenizer.sot_sequence, [text_tokens], encoding.frames
    )[0]
    # A probability that underflowed to 0 still needs a logarithm.
    floor = np.finfo(np.float32).tiny
    logprobs: list[float] = np.log(np.maximum(aligned.text_token_probs, floor)).tolist()
    return logprobs
