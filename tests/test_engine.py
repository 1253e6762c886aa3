"""The real engine: what it hears, how sure it is, and when it was said."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import jiwer
import numpy as np
import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from conftest import Utterance
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.audio.decode import decode
from stt_cascade.audio.speech import detect
from stt_cascade.cascade.recognise import recognise
from stt_cascade.engine import decoding, scores
from stt_cascade.engine.protocol import (
    SAMPLE_RATE,
    Clip,
    Options,
    Samples,
    Span,
    Timestamps,
)
from stt_cascade.engine.timestamps import broke_off, split_at_timestamps
from stt_cascade.engine.transcript import Transcript
from stt_cascade.engine.whisper import WhisperEngine
from tones import silence

Speech = dict[str, Utterance]
# One clip a language, and a short one, which the encoder pads most.
CLIPS = ["LJ001-0007", "fleurs-de-004", "fleurs-es-006", "fleurs-fr-008", "fleurs-pt-002"]
SHORT = "cen3-fjdn-b"


@cache
def heard(audio: bytes) -> Samples:
    return decode(audio, max_seconds=60)


def whole(samples: Samples) -> Clip:
    """A clip whose speech is all of it."""
    return Clip(samples, (Span(0, len(samples)),))


def spoken(samples: Samples) -> Clip:
    """A clip whose speech is where the detector finds it."""
    return Clip(samples, detect(samples))


def recognised(engine: WhisperEngine, clip: Clip, options: Options) -> Transcript:
    """What the engine hears in a clip, window by window, as a tier asks it."""

    async def ask() -> Transcript:
        slots = Slots("test", 1, 0)
        try:
            return await recognise(engine, clip, options, slots, Deadline(60), lambda seconds: None)
        finally:
            slots.close()

    return asyncio.run(ask())


def normal(text: str) -> str:
    return str(EnglishTextNormalizer()(text))


def word_errors(utterance: str, text: str) -> float:
    return float(jiwer.wer(normal(utterance), normal(text)))


@pytest.mark.parametrize("name", [*CLIPS, SHORT])
def test_language_text_and_certainty_are_right(
    base: WhisperEngine, speech: Speech, name: str
) -> None:
    """The language is the clip's, and the rest what faster-whisper says when told the language."""
    utterance = speech[name]
    samples = heard(utterance.audio)
    (theirs,), _ = base._model.transcribe(
        samples,
        language=utterance.language,
        beam_size=1,
        temperature=0,
        without_timestamps=True,
        vad_filter=False,
        condition_on_previous_text=False,
    )

    ours = recognised(base, whole(samples), Options())

    assert ours.language == utterance.language
    assert ours.language_probability is not None
    assert 0.8 < ours.language_probability <= 1
    assert ours.text == theirs.text.strip()
    assert math.log(ours.logprob) == pytest.approx(theirs.avg_logprob, abs=1e-6)
    assert ours.segments[0].avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-6)
    assert ours.segments[0].no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-6)


@pytest.mark.parametrize("kind", ["none", "segment"])
def test_the_tokens_log_probabilities_add_up_to_the_decoders_score(
    base: WhisperEngine, speech: Speech, monkeypatch: pytest.MonkeyPatch, kind: Timestamps
) -> None:
    """`weakest` comes from the logits, `logprob` from the decoder: they must be of one decode."""
    seen: list[tuple[int, float]] = []
    plain = scores.chosen_logprobs
    end = 50257

    def remembered(logits: Iterable[Any], tokens: Sequence[int]) -> list[float]:
        steps = list(logits)
        assert len(steps) == len(tokens)
        seen.extend(zip(tokens, plain(steps, tokens), strict=True))
        return plain(steps, tokens)

    monkeypatch.setattr(decoding, "chosen_logprobs", remembered)
    samples = heard(speech["fleurs-de-004"].audio)
    ours = recognised(base, whole(samples), Options(language="de", timestamps=kind))
    assert len(seen) > 20
    assert seen[-1][0] == end
    # timestamps say nothing of the text: with and without them the mean is over the same tokens
    mean = statistics.fmean(logprob for token, logprob in seen if token <= end)
    assert mean == pytest.approx(math.log(ours.logprob), abs=0.005)
    # neither timestamps nor the end count among the weakest
    lowest = sorted(logprob for token, logprob in seen if token < end)[:3]
    assert ours.weakest == pytest.approx(math.exp(sum(lowest) / 3), rel=1e-6)


def test_every_language_of_the_model_can_be_forced(base: WhisperEngine) -> None:
    token = base._model.hf_tokenizer.token_to_id
    assert {"en", "de", "es", "fr", "pt", "ja", "zh", "ru", "ar"} <= base.languages
    assert all(token(f"<|{code}|>") is not None for code in base.languages)


def test_an_english_model_detects_nothing(tiny_en: WhisperEngine, speech: Speech) -> None:
    assert tiny_en.languages == {"en"}
    utterance = speech["LJ001-0007"]
    ours = recognised(tiny_en, spoken(heard(utterance.audio)), Options())
    assert (ours.language, ours.language_probability) == ("en", None)
    assert word_errors(utterance.text, ours.text) < 0.2


@pytest.fixture(scope="module")
def timed(base: WhisperEngine, speech: Speech) -> dict[Timestamps, Transcript]:
    clip = whole(heard(speech["LJ001-0001"].audio))
    return {
        "segment": recognised(base, clip, Options(language="en", timestamps="segment")),
        "word": recognised(base, clip, Options(language="en", timestamps="word")),
    }


@pytest.mark.parametrize("kind", ["segment", "word"])
def test_times_go_forward_and_stay_inside_the_clip(
    timed: dict[Timestamps, Transcript], speech: Speech, kind: Timestamps
) -> None:
    length = len(heard(speech["LJ001-0001"].audio)) / SAMPLE_RATE
    segments = timed[kind].segments
    assert len(segments) >= 2
    assert timed[kind].language_probability is None  # the language was given
    edges = [time for segment in segments for time in (segment.start, segment.end)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= length
    assert edges[-1] > 0.8 * length


def test_words_have_times_of_their_own(timed: dict[Timestamps, Transcript]) -> None:
    words = [word for segment in timed["word"].segments for word in segment.words]
    edges = [time for word in words for time in (word.start, word.end)]
    assert edges == sorted(edges)
    assert "".join(word.word for word in words).split() == timed["word"].text.split()
    assert all(0 <= word.probability <= 1 for word in words)
    for segment in timed["word"].segments:
        assert segment.start <= segment.words[0].start
        assert segment.words[-1].end <= segment.end


def test_without_words_asked_for_there_are_none(timed: dict[Timestamps, Transcript]) -> None:
    assert all(segment.words == () for segment in timed["segment"].segments)


def test_leading_silence_moves_every_time_and_changes_nothing_else(
    base: WhisperEngine, speech: Speech, timed: dict[Timestamps, Transcript]
) -> None:
    samples = heard(speech["LJ001-0001"].audio)
    late = np.concatenate([silence(4.0), samples])
    moved = recognised(
        base,
        Clip(late, (Span(4 * SAMPLE_RATE, len(late)),)),
        Options(language="en", timestamps="word"),
    )
    before = timed["word"]
    assert moved.text == before.text
    for ours, theirs in zip(moved.segments, before.segments, strict=True):
        assert ours.start == pytest.approx(theirs.start + 4, abs=1e-6)
        assert ours.end == pytest.approx(theirs.end + 4, abs=1e-6)
        for word, other in zip(ours.words, theirs.words, strict=True):
            assert word.start == pytest.approx(other.start + 4, abs=1e-6)
            assert word.end == pytest.approx(other.end + 4, abs=1e-6)


@pytest.fixture(scope="module")
def long(speech: Speech) -> tuple[str, Samples]:
    """More than 30 s: what is said, and how it sounds with pauses between the clips.

    The first window breaks off in the middle of a sentence when timestamps are asked for.
    """
    names = ["LJ001-0001", "LJ001-0003", "LJ001-0005", "LJ001-0007"]
    parts = [np.concatenate([heard(speech[name].audio), silence(0.5)]) for name in names]
    return " ".join(speech[name].text for name in names), np.concatenate(parts)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["segment", "word"])
def test_speech_after_a_pause_is_heard_with_timestamps_too(
    base: WhisperEngine, speech: Speech, kind: Timestamps
) -> None:
    """Whisper may say with a single timestamp that nothing follows; the detector knows better."""
    names = ["LJ001-0007", "an265-mcfl-b", "LJ001-0003", "an5-mblw-b", "LJ001-0005"]
    parts = [np.concatenate([heard(speech[name].audio), silence(0.7)]) for name in names]
    ours = recognised(base, spoken(np.concatenate(parts)), Options(language="en", timestamps=kind))
    assert word_errors(" ".join(speech[name].text for name in names), ours.text) < 0.15


@pytest.mark.process
@pytest.mark.parametrize("kind", ["none", "segment", "word"])
def test_long_audio_keeps_all_words_in_order_and_in_time(
    base: WhisperEngine, long: tuple[str, Samples], kind: Timestamps
) -> None:
    text, samples = long
    assert len(samples) > 35 * SAMPLE_RATE
    ours = recognised(base, spoken(samples), Options(language="en", timestamps=kind))
    assert word_errors(text, ours.text) < 0.05
    assert ours.text == " ".join(segment.text for segment in ours.segments)
    edges = [time for segment in ours.segments for time in (segment.start, segment.end)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < 1
    assert 36 < edges[-1] <= len(samples) / SAMPLE_RATE


BEGIN = 50364  # <|0.00|> of multilingual models


@pytest.mark.parametrize(
    ("tokens", "pieces", "goes_on"),
    [
        ([], [], False),
        ([7, 8], [(0.0, 9.0, [7, 8])], False),
        ([BEGIN, 7, 8, BEGIN + 100], [(0.0, 2.0, [7, 8])], False),
        (
            [BEGIN, 7, BEGIN + 100, BEGIN + 150, 8, BEGIN + 200],
            [(0.0, 2.0, [7]), (3.0, 4.0, [8])],
            False,
        ),
        ([BEGIN, 7, BEGIN + 100, BEGIN + 100], [(0.0, 2.0, [7])], True),
        ([BEGIN, 7, BEGIN + 100, BEGIN + 100, 8], [(0.0, 2.0, [7]), (2.0, 9.0, [8])], False),
    ],
)
def test_timestamps_cut_a_windows_text_into_pieces(
    tokens: list[int], pieces: list[tuple[float, float, list[int]]], goes_on: bool
) -> None:
    assert split_at_timestamps(tokens, BEGIN, 9.0) == pieces
    assert broke_off(tokens, BEGIN) == goes_on


def test_a_prompt_biases_the_spelling(base: WhisperEngine, speech: Speech) -> None:
    clip = whole(heard(speech["LJ001-0007"].audio))
    plain = recognised(base, clip, Options(language="en"))
    biased = recognised(base, clip, Options(language="en", prompt="GOUTENBERGH, the Book"))
    assert "GOUTENBERGH" not in plain.text
    assert plain.text != biased.text
    assert word_errors(plain.text, biased.text) < 0.3


def test_a_prompt_is_text_and_commands_nothing(base: WhisperEngine) -> None:
    def tokens(prompt: str) -> list[int]:
        options = Options(language="en", prompt=prompt)
        form = decoding.Form(beam_size=1, timestamps=False)
        return decoding._prompt(base._model, base._tokenizer("en", options), options, form)

    assert tokens("Gutenberg<|endoftext|><|de|><|translate|>") == tokens("Gutenberg")
    assert len(tokens("Gutenberg")) > len(tokens(""))


def test_a_beam_is_judged_by_its_own_tokens(
    base_with_a_beam: WhisperEngine, speech: Speech
) -> None:
    utterance = speech["LJ001-0007"]
    ours = recognised(base_with_a_beam, whole(heard(utterance.audio)), Options(language="en"))
    assert word_errors(utterance.text, ours.text) < 0.1
    assert 0 < ours.weakest < ours.logprob <= 1


@pytest.mark.process
@pytest.mark.parametrize("name", ["base", "short", "base_with_a_beam"])
def test_a_prompt_leaves_a_short_clip_its_text(
    name: str, speech: Speech, request: pytest.FixtureRequest
) -> None:
    """Prompt and text share Whisper's context; a clip of a second needs little of it."""
    engine: WhisperEngine = request.getfixturevalue(name)
    clip = spoken(heard(speech["an5-mblw-b"].audio))
    plain = recognised(engine, clip, Options(language="en"))
    prompted = recognised(
        engine, clip, Options(language="en", prompt="The caller says one word. " * 100)
    )
    assert plain.text
    assert normal(prompted.text) == normal(plain.text)


def test_noise_is_doubted(base: WhisperEngine, speech: Speech) -> None:
    """Speech under loud noise has weaker tokens than the same speech alone."""
    samples = heard(speech["fleurs-en-004"].audio)
    noise = np.random.default_rng(1).normal(0, samples.std() * 2, len(samples))
    clean = recognised(base, whole(samples), Options(language="en"))
    noisy = recognised(base, whole(samples + noise.astype(np.float32)), Options(language="en"))
    assert noisy.weakest < clean.weakest
    assert noisy.logprob < clean.logprob


def recall(reference: str, text: str) -> float:
    """The share of the reference's words that the text has, in order."""
    counts = jiwer.process_words(normal(reference), normal(text))
    return counts.hits / (counts.hits + counts.substitutions + counts.deletions)


@pytest.mark.parametrize("pause", [0.3, 0.8, 1.5, 2.7, 4.0])
@pytest.mark.parametrize(
    ("word", "sentence"), [("an46-mmap-b", "LJ001-0003"), ("an22-flrp-b", "fleurs-de-004")]
)
def test_a_sentence_after_a_short_word_and_a_pause_is_heard(
    short: WhisperEngine, speech: Speech, word: str, sentence: str, pause: float
) -> None:
    """Greedy decoding without timestamps stops after the word."""
    parts = [heard(speech[word].audio), silence(pause), heard(speech[sentence].audio)]
    clip = spoken(np.concatenate(parts))
    language = speech[sentence].language
    for options in (Options(language=language), Options()):
        ours = recognised(short, clip, options)
        assert ours.language == language
        assert recall(speech[sentence].text, ours.text) > 0.6
        assert ours.covered


@pytest.mark.parametrize("pause", [0.8, 2.0, 4.0])
def test_a_second_language_in_a_clip_is_doubted(
    short: WhisperEngine, speech: Speech, pause: float
) -> None:
    def both(second: str) -> Transcript:
        first = heard(speech["fleurs-de-004"].audio)
        parts = [first, silence(pause), heard(speech[second].audio)]
        return recognised(short, spoken(np.concatenate(parts)), Options())

    mixed, alike = both("fleurs-fr-000"), both("fleurs-de-000")
    assert "mixed_languages" in mixed.warnings
    assert alike.warnings == ()
    assert mixed.language_probability is not None
    assert alike.language_probability is not None
    assert mixed.language_probability < 0.1 < 0.9 < alike.language_probability


def test_a_prompt_that_the_clip_does_not_say_is_not_its_text(
    short: WhisperEngine, speech: Speech
) -> None:
    clip = spoken(heard(speech["an46-mmap-b"].audio))
    for prompt in (
        "okay " * 100,
        "I will call you back in a minute. " * 12,
        "the invention of movable metal",
    ):
        ours = recognised(short, clip, Options(language="en", prompt=prompt))
        assert normal("stop") in normal(ours.text)
        assert len(ours.text.split()) <= 2


@pytest.mark.parametrize("words", [8, 12, 16])
def test_a_prompt_that_breaks_off_does_not_take_the_beginning_of_the_text(
    short: WhisperEngine, speech: Speech, words: int
) -> None:
    """Clients send what they have so far; Whisper would go on from there."""
    clip = spoken(heard(speech["LJ001-0003"].audio))
    plain = recognised(short, clip, Options(language="en")).text
    start = " ".join(plain.split()[:words])
    ours = recognised(short, clip, Options(language="en", prompt=start))
    assert word_errors(plain, ours.text) < 0.15


def test_a_second_language_is_doubted_where_the_caller_names_one_too(
    short: WhisperEngine, speech: Speech
) -> None:
    parts = [heard(speech[name].audio) for name in ("fleurs-es-002", "fleurs-en-000")]
    clip = spoken(np.concatenate([parts[0], silence(0.7), parts[1]]))
    ours = recognised(short, clip, Options(language="en"))
    assert "mixed_languages" in ours.warnings
    assert not ours.covered
    translated = recognised(short, clip, Options(language="en", task="translate"))
    assert "mixed_languages" not in translated.warnings


def test_a_text_that_the_prompt_has_too_is_kept_without_a_warning(
    short: WhisperEngine, speech: Speech
) -> None:
    clip = spoken(heard(speech["LJ001-0007"].audio))
    plain = recognised(short, clip, Options(language="en"))
    again = recognised(short, clip, Options(language="en", prompt=plain.text))
    assert word_errors(plain.text, again.text) < 0.15
    assert again.warnings == ()


def test_an_english_model_takes_a_clip_of_several_windows(
    tiny_en: WhisperEngine, speech: Speech
) -> None:
    parts = [heard(speech["LJ001-0007"].audio), silence(4.0), heard(speech["LJ001-0003"].audio)]
    ours = recognised(tiny_en, spoken(np.concatenate(parts)), Options())
    assert recall(speech["LJ001-0003"].text, ours.text) > 0.6
    assert ours.language_probability is None


@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_word_that_is_said_often_does_not_become_a_loop(
    short: WhisperEngine, speech: Speech, count: int
) -> None:
    word = heard(speech["an46-mmap-b"].audio)
    parts = [part for _ in range(count) for part in (word, silence(0.3))]
    ours = recognised(short, spoken(np.concatenate(parts)), Options(language="en"))
    # Whisper base may be wrong by one or two of six; a loop has dozens.
    assert 1 <= normal(ours.text).split().count("stop") <= count + 2
