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

from stt_cascade.engine.decoding import (
    BROKEN_CHARACTER,
    MAX_KEPT,
    Decoded,
    Form,
    cut_runs,
    decode,
    warm_up,
)
from stt_cascade.engine.encoding import (
    Encoder,
    Encoding,
    FullEncoder,
    ShortEncoder,
    ShortForm,
)
from stt_cascade.engine.faults import (
    SLACK_SECONDS,
    Fault,
    Piece,
    covers,
    echoes,
    exceeds,
    letters,
    miscounts,
    repetitions,
    same,
)
from stt_cascade.engine.protocol import (
    SAMPLE_RATE,
    Options,
    Samples,
    Segment,
    Span,
    Utterance,
    Word,
)
from stt_cascade.engine.tail import tail
from stt_cascade.engine.timestamps import broke_off, split_at_timestamps
from stt_cascade.engine.windows import until
from stt_cascade.warning_codes import WarningCode

# Of a window that is decoded in two goes, each part is at least this long.
MIN_PART_SECONDS = 0.5
# A window ends with speech, so a last timestamp so long before its end has left some of that out,
# whatever Whisper says. Timestamps may be a second early.
UNHEARD_SECONDS = SLACK_SECONDS
# A less likely language is not worth a decode of its own.
MIN_LANGUAGE_PROBABILITY = 0.1
# A stretch of speech of so many seconds, silence around it included, tells its language by itself;
# if that is surely another one than the window's, the text leaves it out or translates it.
FOREIGN_SECONDS = 2.5
FOREIGN_PROBABILITY = 0.7
# Of a clip of one word, less than 30 s of context makes the detection doubt what 30 s tell.
SURE_LANGUAGE_PROBABILITY = 0.9
WARM_UP_SECONDS = 1.0
PREPEND_PUNCTUATION = "\"'“¿([{-"
APPEND_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  # full-width marks are meant


# A decode that something is wrong with is tried again with so many hypotheses.
RETRY_BEAM_SIZE = 5
# The last way out of a loop; it also shortens what was really said so often.
NGRAM_LIMIT = 5  # tokens


@dataclass(frozen=True, slots=True)
class _Heard:
    """A window as heard in one language and one form.

    Attributes:
        probability: the language's, if it was detected.
        pieces: the text by its timestamps.
        heard_until: as in `Utterance`.
        fault: what is wrong with the text, if that shows.
        mixed: a stretch of the speech is in another language.
    """

    encoding: Encoding
    tokenizer: Tokenizer
    probability: float | None
    form: Form
    decoded: Decoded
    pieces: tuple[Piece, ...]
    heard_until: float | None
    fault: Fault | None
    mixed: bool = False
    full_context: bool = False
    doubted: bool = False

    @property
    def miscounts(self) -> bool:
        """Whether it says one thing, and not as often as somebody speaks."""
        return miscounts(self.decoded.text, until(self.encoding.speech, self.heard_until))


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
        patient: a text that something is wrong with is tried in more than one other way, since
            nobody else can be asked.
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
        patient: bool = False,
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
        self._patient = patient
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

    def encode(self, samples: Samples, speech: Sequence[Span] = ()) -> Encoding:
        return _with_speech(self._encoder.encode(samples), speech)

    def decode(self, encodings: Sequence[Encoding], options: Options) -> list[Utterance]:
        # Without timestamps, what follows a pause gets lost now and then.
        pauses = any(len(encoding.speech) > 1 for encoding in encodings)
        asked = options.timestamps != "none"
        form = Form(self._beam_size, timestamps=asked or pauses, prompt=bool(options.prompt))
        return [
            self._utterance(self._checked(heard, options), options)
            for heard in self._hear(encodings, options, form)
        ]

    def _checked(self, heard: _Heard, options: Options) -> _Heard:
        """The same, or what other ways to decode it made of it, all in the same slot."""
        if heard.fault is None:
            return self._second_look(heard, options) if heard.decoded.doubtful else heard
        tried = [heard]
        timed = options.timestamps != "none"
        for form in other_forms(heard.fault, heard.form, timed=timed, patient=self._patient):
            again = self._again(heard, options, form)
            if _agreed(again, tried):  # two opinions: it was really said so often
                again = replace(again, fault=None)
            if heard.fault == "prompt" and same(heard.decoded.text, again.decoded.text):
                return replace(heard, fault=None)  # what was said is in the prompt
            if again.fault is None:
                return again
            tried.append(again)
        return min(tried, key=_badness)

    def _second_look(self, heard: _Heard, options: Options) -> _Heard:
        if self._doubt_beam_size <= self._beam_size:
            return heard
        # Alone: each hypothesis of each window takes the memory of a window.
        form = replace(heard.form, beam_size=self._doubt_beam_size)
        wider = self._again(heard, options, form)
        return replace(heard, doubted=True) if wider.fault else wider

    def _again(self, heard: _Heard, options: Options, form: Form) -> _Heard:
        """Decode once more; what looks like a loop is encoded in full, unless it is already."""
        encoding, in_full = heard.encoding, False
        if heard.fault in ("loop", "broken", "excess") and not encoding.full:
            # The net under the short encoding.
            encoding, in_full = (
                _with_speech(self._full.encode(encoding.samples), encoding.speech),
                True,
            )
        (decoded,) = decode(self._model, [encoding], [heard.tokenizer], options, form)
        again = self._judged(encoding, heard.tokenizer, heard.probability, decoded, options, form)
        return replace(again, full_context=in_full, doubted=not in_full, mixed=heard.mixed)

    def _judged(
        self,
        encoding: Encoding,
        tokenizer: Tokenizer,
        probability: float | None,
        decoded: Decoded,
        options: Options,
        form: Form,
    ) -> _Heard:
        """A decode, and what is wrong with it."""
        duration = len(encoding.samples) / SAMPLE_RATE
        pieces = tuple(
            Piece(start, min(end, duration), tokens, text)
            for start, end, tokens in split_at_timestamps(
                decoded.tokens, tokenizer.timestamp_begin, duration
            )
            if (text := tokenizer.decode(tokens).strip())
        )
        heard_until = self._heard_until(pieces, decoded, tokenizer, encoding)
        speech = until(encoding.speech, heard_until)
        fault: Fault | None = None
        if decoded.broken:
            fault = "broken"
        elif form.prompt and options.prompt and echoes(decoded.text, options.prompt):
            fault = "prompt"
        elif exceeds(pieces, speech):
            fault = "excess"
        elif not covers(pieces, speech):
            fault = "coverage"
        elif decoded.repeats or miscounts(decoded.text, speech):
            fault = "loop"
        return _Heard(encoding, tokenizer, probability, form, decoded, pieces, heard_until, fault)

    def _heard_until(
        self, pieces: Sequence[Piece], decoded: Decoded, tokenizer: Tokenizer, encoding: Encoding
    ) -> float | None:
        """Where another decode goes on, by the decoded timestamps: aligned words may end later."""
        if not pieces or decoded.broken:
            return None
        end = pieces[-1].end
        left_out = encoding.speech[-1].start >= end * SAMPLE_RATE
        sure = left_out or broke_off(decoded.tokens, tokenizer.timestamp_begin)
        unheard = MIN_PART_SECONDS if sure else UNHEARD_SECONDS
        left = len(encoding.samples) / SAMPLE_RATE - end
        return None if end < MIN_PART_SECONDS or left < unheard else end

    def _hear(self, encodings: Sequence[Encoding], options: Options, form: Form) -> list[_Heard]:
        language = options.language
        if len(self._languages) == 1:
            (language,) = self._languages
        if language is not None:
            tokenizer = self._tokenizer(language, options)
            tokenizers = [tokenizer] * len(encodings)
            decoded = decode(self._model, encodings, tokenizers, options, form)
            all_ = [
                self._judged(encoding, tokenizer, None, one, options, form)
                for encoding, one in zip(encodings, decoded, strict=True)
            ]
            return [
                self._of_one_language(one, options)
                if options.assumed or len(one.encoding.speech) > 1
                else one
                for one in all_
            ]
        first, *rest = encodings
        heard = self._hear_some_language(first, options, form)
        known = replace(options, language=heard.tokenizer.language_code)
        return [heard, *(self._hear(rest, known, form) if rest else ())]

    def _hear_some_language(self, encoding: Encoding, options: Options, form: Form) -> _Heard:
        """Decode in each language that it may be, together; the likeliest pair of both counts."""
        found = self._likely_languages(encoding)
        tokenizers = [self._tokenizer(language, options) for language, _ in found]
        decoded = decode(self._model, [encoding] * len(found), tokenizers, options, form)
        judged = [
            self._judged(encoding, tokenizer, probability, one, options, form)
            for tokenizer, (_, probability), one in zip(tokenizers, found, decoded, strict=True)
        ]
        heard = max(judged, key=_likelihood)
        return self._of_one_language(heard, options) if len(encoding.speech) > 1 else heard

    def _of_one_language(self, heard: _Heard, options: Options) -> _Heard:
        """The same, marked if a stretch is in another language than the text is to be."""
        if len(self._languages) == 1 or options.task == "translate":
            return heard
        language, encoding = heard.tokenizer.language_code, heard.encoding
        for span in encoding.speech:
            if span.seconds < FOREIGN_SECONDS:
                continue
            spoken = dict(self._model.model.detect_language(encoding.part(span))[0])
            ours = spoken[f"<|{language}|>"]
            if ours < MIN_LANGUAGE_PROBABILITY and max(spoken.values()) >= FOREIGN_PROBABILITY:
                named = options.language is not None and not options.assumed
                return replace(heard, probability=None if named else ours, mixed=True)
        return heard

    def _likely_languages(self, encoding: Encoding) -> list[tuple[str, float]]:
        detect = self._model.model.detect_language
        longest = max(encoding.speech, key=lambda span: span.seconds)
        # A word before a pause would mislead the detection, which looks at beginnings.
        alone = len(encoding.speech) > 1 and longest.seconds >= FOREIGN_SECONDS
        heard = encoding.part(longest) if alone else encoding.own
        found = likely_languages(detect(heard)[0], self._detectable)
        if found[0][1] >= SURE_LANGUAGE_PROBABILITY or encoding.own is encoding.output:
            return found
        return likely_languages(detect(self._encoder.whole(encoding))[0], self._detectable)

    def _utterance(self, heard: _Heard, options: Options) -> Utterance:
        decoded, fault = heard.decoded, heard.fault
        if not math.isfinite(decoded.avg_logprob + decoded.weakest):
            raise ArithmeticError("the model's scores are not numbers")
        warnings: list[WarningCode] = []
        if options.prompt and not heard.form.prompt:
            warnings.append("prompt_ignored")
        if heard.form.ngram_limit or (fault and cut_runs(decoded.tokens) != decoded.tokens):
            warnings.append("text_cut")
        if heard.mixed:
            warnings.append("mixed_languages")
        if fault in ("broken", "coverage"):
            warnings.append("text_incomplete")
        return Utterance(
            language=heard.tokenizer.language_code,
            language_probability=heard.probability,
            segments=self._segments(heard, options),
            avg_logprob=decoded.avg_logprob,
            tokens=decoded.spoken,
            weakest=math.exp(decoded.weakest),
            heard_until=heard.heard_until,
            full_context=heard.full_context,
            doubted=heard.doubted,
            looped=fault is not None and fault != "coverage",
            # Where the caller names the language, no other gate looks at it.
            covered=fault != "coverage" and not (heard.mixed and heard.probability is None),
            warnings=tuple(warnings),
        )

    def _tokenizer(self, language: str, options: Options) -> Tokenizer:
        return Tokenizer(
            self._model.hf_tokenizer,
            self._model.model.is_multilingual,
            task=options.task,
            language=language,
        )

    def _segments(self, heard: _Heard, options: Options) -> tuple[Segment, ...]:
        encoding, decoded = heard.encoding, heard.decoded
        end = heard.heard_until or len(encoding.samples) / SAMPLE_RATE
        pieces: list[dict[str, Any]] = [
            {"seek": 0, "start": piece.start, "end": piece.end, "tokens": piece.tokens}
            for piece in heard.pieces
        ]
        if heard.fault:
            for piece in pieces:
                piece["tokens"] = cut_runs(piece["tokens"])
        if options.timestamps == "none" and pieces:
            tokens = [token for piece in pieces for token in piece["tokens"]]
            pieces = [{"seek": 0, "start": 0.0, "end": end, "tokens": tokens}]
        if options.timestamps == "word" and pieces:
            self._model.add_word_timestamps(
                [pieces],
                heard.tokenizer,
                encoding.output,
                encoding.frames,
                PREPEND_PUNCTUATION,
                APPEND_PUNCTUATION,
                0.0,
            )
        return tuple(
            Segment(
                start=min(piece["start"], end),
                end=min(piece["end"], end),
                text=text,
                avg_logprob=decoded.avg_logprob,
                no_speech_prob=decoded.no_speech_prob,
                words=tuple(
                    Word(
                        start=min(float(word["start"]), end),
                        end=min(float(word["end"]), end),
                        word=word["word"].replace(BROKEN_CHARACTER, ""),
                        probability=float(word["probability"]),
                    )
                    for word in piece.get("words", ())
                ),
                suspect=heard.fault is not None,
            )
            for piece in pieces
            if (text := self._text(piece["tokens"], heard.tokenizer))
        )

    def _text(self, tokens: list[int], tokenizer: Tokenizer) -> str:
        text: str = tokenizer.decode(tokens)
        return text.replace(BROKEN_CHARACTER, "").strip()


def other_forms(fault: Fault, form: Form, *, timed: bool, patient: bool) -> list[Form]:
    """Ways to decode a window again, in a form that it was not decoded in yet; the likeliest first.

    Args:
        timed: the caller wants times, which only timestamps give.
        patient: nobody else can be asked, so more than one is tried.
    """
    wide = Form(RETRY_BEAM_SIZE, timed, prompt=False)
    if fault == "prompt":
        forms = [replace(form, prompt=False)]
    elif fault == "coverage":
        forms = [replace(wide, timestamps=True), Form(1, timestamps=True, prompt=False)]
    else:
        forms = [
            wide,  # without timestamps, which are the worse for counting repetitions
            Form(1, timestamps=True, prompt=False),
            replace(wide, timestamps=True, ngram_limit=NGRAM_LIMIT),
        ]
    forms = [other for other in forms if other != form]
    return forms if patient else forms[:1]


def _agreed(heard: _Heard, others: Sequence[_Heard]) -> bool:
    """Whether a text that looks like a loop repeats what it does as often as another one."""
    counts = repetitions(heard.decoded.text)
    if heard.fault != "loop" or max(counts, default=0) > MAX_KEPT or heard.miscounts:
        return False
    # A long turn is not a run, but one sentence too many would show in the length.
    length = letters(heard.decoded.text)
    return any(
        one.fault == "loop"
        and repetitions(one.decoded.text) == counts
        and abs(letters(one.decoded.text) - length) <= length / 10
        for one in others
    )


def _likelihood(heard: _Heard) -> tuple[bool, bool, float]:
    """How likely a language and its text are together; a text of all the speech comes first."""
    prior = math.log(heard.probability) if heard.probability else 0.0
    return heard.fault is None, heard.heard_until is None, heard.decoded.logprob + prior


def _badness(heard: _Heard) -> tuple[bool, int, int]:
    """Of texts that all have a fault, the least is taken."""
    much, form = letters(heard.decoded.text), heard.form
    if heard.fault in ("broken", "excess"):
        return True, 0, much
    if heard.fault == "coverage":
        return False, 0, -much
    # It may have been said so often: a wide beam counts best, and an n-gram limit not at all.
    rank = 2 * (form.ngram_limit - form.beam_size) + form.timestamps
    return False, rank + 100 * heard.miscounts, much


def _with_speech(encoding: Encoding, speech: Sequence[Span]) -> Encoding:
    everywhere = (Span(0, len(encoding.samples)),)
    return replace(encoding, speech=tuple(speech) or everywhere)


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
