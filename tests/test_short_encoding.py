"""The short encoding on real speech: as right as the full one, and caught when it goes wrong."""

from __future__ import annotations

import math
from pathlib import Path

import jiwer
import numpy as np
import pytest
from structlog.testing import capture_logs
from whisper_normalizer.basic import BasicTextNormalizer

from conftest import Utterance, model
from stt_cascade.audio.decode import decode
from stt_cascade.audio.speech import detect
from stt_cascade.engine import tail as tails
from stt_cascade.engine import whisper
from stt_cascade.engine.decoding import Form, repeats, token_cap
from stt_cascade.engine.decoding import decode as decode_windows
from stt_cascade.engine.encoding import POSITIONS, FullEncoder, ShortEncoder, ShortForm
from stt_cascade.engine.protocol import SAMPLE_RATE, Options, Samples
from stt_cascade.engine.whisper import WhisperEngine
from tones import silence

Speech = dict[str, Utterance]
CLIPS = ["an265-mcfl-b", "an5-mblw-b", "LJ001-0007", "fleurs-de-004", "fleurs-es-006"]


def heard(audio: bytes) -> Samples:
    """The clip without the silence around its speech."""
    samples = decode(audio, max_seconds=60)
    spans = detect(samples)
    return samples[spans[0].start : spans[-1].end]


def text(engine: WhisperEngine, samples: Samples, options: Options) -> str:
    return " ".join(segment.text for segment in engine.transcribe(samples, options).segments)


def words_wrong(reference: str, text: str) -> int:
    normal = BasicTextNormalizer()
    counts = jiwer.process_words(normal(reference), normal(text))
    return counts.substitutions + counts.deletions + counts.insertions


@pytest.mark.process
def test_short_encodings_hear_what_full_ones_hear(
    short: WhisperEngine, base: WhisperEngine, speech: Speech
) -> None:
    """Pooled over clips: a single word may fall either way, on another processor too."""
    wrong = {short: 0, base: 0}
    words = 0
    for name in CLIPS:
        samples = heard(speech[name].audio)
        words += len(speech[name].text.split())
        for engine in wrong:
            ours = engine.transcribe(samples, Options())
            assert ours.language == speech[name].language
            assert not ours.full_context
            hypothesis = " ".join(segment.text for segment in ours.segments)
            wrong[engine] += words_wrong(speech[name].text, hypothesis)
    assert wrong[short] <= wrong[base] + 0.05 * words


def test_the_language_of_one_word_is_as_sure_as_in_30_s(
    short: WhisperEngine, base: WhisperEngine, speech: Speech
) -> None:
    """Pooled. For a doubt that is only the short context's, the fallback would be asked in vain."""
    doubts = []
    for name in ("an357-mscg2-b", "an324-mmal-b", "an185-fnsv-b", "an180-mjjs2-b"):
        samples = heard(speech[name].audio)
        brief, full = (engine.transcribe(samples, Options()) for engine in (short, base))
        assert brief.language == full.language == "en"
        assert brief.language_probability is not None
        assert full.language_probability is not None
        doubts.append(full.language_probability - brief.language_probability)
    assert sum(doubts) / len(doubts) < 0.15


def test_the_encoder_sees_the_clip_and_not_30_s(short: WhisperEngine, speech: Speech) -> None:
    encoder = short._encoder
    assert isinstance(encoder, ShortEncoder)
    samples = heard(speech["fleurs-en-004"].audio)
    encoding = encoder.encode(samples)
    positions = encoding.output.shape[1]
    needed = (len(samples) / SAMPLE_RATE + 4.5) * 50  # with the margin, without the edge
    own = encoding.own.shape[1]
    assert 0 <= own - needed <= 25  # padded up to half a second
    assert positions == pytest.approx(own + (POSITIONS - own) / 4, abs=1)
    assert encoding.frames == pytest.approx(len(samples) / 160, abs=1)


def test_clips_of_many_lengths_are_encoded_in_few_shapes(short: WhisperEngine) -> None:
    """Each shape costs memory for good, and time once."""
    lengths = {short.encode(silence(1 + tenth / 10)).own.shape[1] for tenth in range(30)}
    assert len(lengths) == 7


def test_a_window_near_30_s_is_encoded_in_full(short: WhisperEngine) -> None:
    assert short._encoder.encode(silence(29.0)).output.shape[1] == POSITIONS


def test_word_times_are_those_of_the_full_encoding(
    short: WhisperEngine, base: WhisperEngine, speech: Speech
) -> None:
    samples = heard(speech["LJ001-0007"].audio)
    options = Options(language="en", timestamps="word")
    brief, full = (
        [word for segment in engine.transcribe(samples, options).segments for word in segment.words]
        for engine in (short, base)
    )
    times = {word.word: word for word in full}
    both = [(word, times[word.word]) for word in brief if word.word in times]
    assert len(both) > 0.9 * len(full)
    for ours, theirs in both:
        assert ours.start == pytest.approx(theirs.start, abs=0.3)
    # The last word ends with the decoded timestamp, which may be a second off in either.
    for ours, theirs in both[:-1]:
        assert ours.end == pytest.approx(theirs.end, abs=0.3)


def test_windows_decoded_together_are_heard_as_each_alone(
    short: WhisperEngine, base: WhisperEngine, speech: Speech
) -> None:
    """Of different lengths, one of them encoded in full."""
    names = ["LJ001-0007", "LJ001-0003", "an265-mcfl-b"]
    encodings = [short.encode(heard(speech[name].audio)) for name in names]
    encodings.append(base.encode(heard(speech["fleurs-en-004"].audio)))
    options = Options(language="en")
    together = short.decode(encodings, options)
    alone = [short.decode([encoding], options)[0] for encoding in encodings]
    for one, other in zip(together, alone, strict=True):
        expected = " ".join(segment.text for segment in other.segments)
        # More silence after the shorter ones may change a comma, or a word in doubt.
        assert words_wrong(expected, " ".join(segment.text for segment in one.segments)) <= 1
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.1)
        assert one.weakest == pytest.approx(other.weakest, abs=0.1)


def test_a_doubtful_text_gets_a_second_look_with_a_beam(
    short: WhisperEngine, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, options = heard(speech["fleurs-en-004"].audio), Options(language="en")
    noise = np.random.default_rng(1).normal(0, samples.std(), len(samples))
    noisy = samples + noise.astype(np.float32)
    greedy = short.transcribe(noisy, options)
    assert greedy.weakest < 0.4
    assert not greedy.doubted
    form = Form(beam_size=5, timestamps=False)
    tokenizer = short._tokenizer("en", options)
    beam = decode_windows(short._model, [short.encode(noisy)], [tokenizer], options, form)

    monkeypatch.setattr(short, "_doubt_beam_size", 5)
    ours = short.transcribe(noisy, options)
    assert ours.doubted
    assert ours.weakest == pytest.approx(math.exp(beam[0].weakest))
    assert text(short, noisy, options) != " ".join(segment.text for segment in greedy.segments)
    assert not short.transcribe(heard(speech["LJ001-0007"].audio), options).doubted


@pytest.mark.process
def test_a_loop_is_caught_and_encoded_in_full_once(base: WhisperEngine, speech: Speech) -> None:
    """A tail so thin that it stops nothing makes the decoder loop; the caller gets a good text."""
    looping = WhisperEngine(
        model("base"),
        compute_type="int8",
        cpu_threads=2,
        short=ShortForm(margin=0.5, edge=0.0, stride=400, spoken_tail=False),
    )
    retried = 0
    for name in CLIPS:
        samples, options = heard(speech[name].audio), Options(language=speech[name].language)
        ours = looping.transcribe(samples, options)
        if ours.full_context:
            retried += 1
            brief = " ".join(segment.text for segment in ours.segments)
            # A beam may find another spelling, but nothing is repeated any more.
            assert words_wrong(text(base, samples, options), brief) <= 2
    assert retried > 0


@pytest.mark.process
@pytest.mark.weights
def test_an_english_model_has_a_tail_of_its_own(speech: Speech) -> None:
    tiny = WhisperEngine(model("tiny.en"), compute_type="int8", cpu_threads=2, short=ShortForm())
    ours = tiny.transcribe(heard(speech["LJ001-0007"].audio), Options())
    assert words_wrong(speech["LJ001-0007"].text, ours.segments[0].text) <= 4


@pytest.mark.weights
def test_detection_chooses_among_the_allowed_languages(speech: Speech) -> None:
    engine = WhisperEngine(
        model("base"), compute_type="int8", cpu_threads=2, languages=frozenset({"en", "fr"})
    )
    german = engine.transcribe(heard(speech["fleurs-de-004"].audio), Options())
    assert german.language in {"en", "fr"}
    # It is neither, and the language gate shall see that.
    assert german.language_probability is not None
    assert german.language_probability < 0.1
    assert "de" in engine.languages  # it may still be asked for


def test_of_two_languages_the_one_counts_in_which_the_words_make_sense(
    short: WhisperEngine, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that leans to Spanish does not make German speech Spanish."""
    monkeypatch.setattr(
        whisper, "likely_languages", lambda detected, allowed: [("es", 0.6), ("de", 0.4)]
    )
    ours = short.transcribe(heard(speech["fleurs-de-004"].audio), Options())
    assert (ours.language, ours.language_probability) == ("de", 0.4)
    spanish = short.transcribe(heard(speech["fleurs-es-006"].audio), Options())
    assert (spanish.language, spanish.language_probability) == ("es", 0.6)


@pytest.mark.parametrize(
    ("detected", "allowed", "likely"),
    [
        ({"it": 0.9, "es": 0.08, "en": 0.02}, {"it", "es", "en"}, {"it": 0.9}),
        ({"it": 0.5, "es": 0.3, "en": 0.2}, {"it", "es", "en"}, {"it": 0.5, "es": 0.3}),
        ({"it": 0.6, "es": 0.3, "en": 0.1}, {"es", "en"}, {"es": 0.3, "en": 0.1}),
        ({"de": 0.99, "en": 0.004, "fr": 0.0001}, {"en", "fr"}, {"en": 0.004}),
        ({"it": 1.0, "en": 0.0}, {"en"}, {"en": 0.0}),
    ],
)
def test_only_languages_that_may_be_spoken_are_tried(
    detected: dict[str, float], allowed: set[str], likely: dict[str, float]
) -> None:
    tokens = [(f"<|{code}|>", probability) for code, probability in detected.items()]
    found = dict(whisper.likely_languages(tokens, frozenset(allowed)))
    assert found == pytest.approx(likely)


@pytest.mark.weights
def test_a_model_that_knows_none_of_the_languages_does_not_load() -> None:
    with pytest.raises(ValueError, match="none of the languages"):
        WhisperEngine(model("tiny.en"), compute_type="int8", languages=frozenset({"de"}))


class TestTail:
    """The tail, and where it is kept."""

    @pytest.mark.process
    def test_it_is_made_once_for_the_same_weights(
        self, base: WhisperEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = model("base") / "model.bin"
        made = tails.tail(base._model, file, spoken=True, cache=tmp_path / "cache")
        assert made.shape == (POSITIONS, 512)
        assert np.isfinite(made).all()
        monkeypatch.setattr(tails, "make_tail", None)
        again = tails.tail(base._model, file, spoken=True, cache=tmp_path / "cache")
        assert np.array_equal(made, again)
        assert len(list((tmp_path / "cache").iterdir())) == 1

    @pytest.mark.parametrize("left", [0, 1000], ids=["empty", "cut"])
    def test_a_damaged_cache_is_made_anew(
        self, base: WhisperEngine, tmp_path: Path, left: int
    ) -> None:
        file = model("base") / "model.bin"
        made = tails.tail(base._model, file, spoken=False, cache=tmp_path)
        (kept,) = tmp_path.iterdir()
        kept.write_bytes(kept.read_bytes()[:left])
        with capture_logs() as logs:
            again = tails.tail(base._model, file, spoken=False, cache=tmp_path)
        assert np.array_equal(made, again)
        assert [line["event"] for line in logs] == [
            "the cached tail cannot be read; making it anew"
        ]

    def test_a_cache_that_cannot_be_written_costs_only_time(
        self, base: WhisperEngine, tmp_path: Path
    ) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("no folder")
        with capture_logs() as logs:
            made = tails.tail(base._model, model("base") / "model.bin", False, blocked / "cache")
        assert made.shape == (POSITIONS, 512)
        assert logs[-1]["log_level"] == "warning"


@pytest.mark.parametrize(
    ("tokens", "text", "looped"),
    [
        ([1, 2, 3, 4, 5], "one two three", False),
        ([7, 7, 7], "no no no", False),
        ([7, 7, 7, 7], "no no no no", True),
        ([1, 2, 3] * 3, "one two three", False),
        ([9, *([1, 2, 3] * 4)], "one two three", True),
        (list(range(40)), "again and again and again and " * 8, True),
        ([], "", False),
    ],
)
def test_a_loop_shows_itself(tokens: list[int], text: str, looped: bool) -> None:
    assert repeats(tokens, text) == looped


def test_the_cap_grows_with_the_speech_up_to_whispers_own() -> None:
    caps = [token_cap(seconds) for seconds in (0.3, 1, 3, 10, 30)]
    assert caps == sorted(caps)
    assert caps[0] < 40
    assert caps[-1] == 224


def test_without_the_short_form_everything_is_encoded_in_full(base: WhisperEngine) -> None:
    assert isinstance(base._encoder, FullEncoder)
    assert base._encoder.encode(silence(1.0)).output.shape[1] == POSITIONS
