"""How several channels become one."""

from __future__ import annotations

import numpy as np
import pytest

from stt_cascade.audio.channels import STRETCH, Mixer
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples

CHANCE = np.random.default_rng(1)


def voice(seconds: float = 3.0, level: float = 0.2) -> Samples:
    """Noise of the colour of a voice, louder and softer by turns."""
    noise = CHANCE.standard_normal(round(seconds * SAMPLE_RATE) + 40)
    coloured = np.convolve(noise, np.hanning(41), "valid")
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * np.arange(len(coloured)) / SAMPLE_RATE)
    said: Samples = (coloured * swell * level / coloured.std()).astype(np.float32)
    return said


def mixed(*channels: Samples, block: int = 1000) -> Samples:
    mixer = Mixer()
    rows = np.stack(channels, axis=1)
    parts = [
        part for at in range(0, len(rows), block) for part in mixer.feed(rows[at : at + block])
    ]
    return np.concatenate([*parts, *mixer.flush()])


def power(samples: Samples) -> float:
    return float(np.mean(samples.astype(np.float64) ** 2))


@pytest.mark.parametrize("others", [1, 2, 5])
@pytest.mark.parametrize("share", [1.0, 0.99, 0.9, 0.7])
def test_a_voice_that_is_there_twice_with_opposite_signs_is_heard(
    share: float, others: int
) -> None:
    said = voice()
    silent = [np.zeros_like(said)] * (others - 1)
    heard = mixed(said, -share * said, *silent)
    assert abs(np.corrcoef(heard, said)[0, 1]) > 0.999
    assert power(heard) > 0.45 * power(said)


@pytest.mark.parametrize("common", [0.05, -0.2])
def test_an_offset_or_hum_in_both_does_not_hide_it(common: float) -> None:
    said = voice()
    hum = common * (1 + np.sin(2 * np.pi * 50 * np.arange(len(said)) / SAMPLE_RATE)) / 2
    heard = mixed(said + hum.astype(np.float32), hum.astype(np.float32) - said)
    assert power(heard - hum.astype(np.float32)) > 0.9 * power(said)


@pytest.mark.parametrize("at", [SAMPLE_RATE, SAMPLE_RATE + STRETCH // 2, SAMPLE_RATE + STRETCH - 1])
def test_signs_may_turn_in_the_middle(at: int) -> None:
    said = voice()
    other = np.concatenate([said[:at], -said[at:]])
    heard = mixed(said, other)
    assert min(np.abs(heard - said).max(), np.abs(heard - other).max()) < 0.01


def test_the_stronger_channel_is_taken() -> None:
    said = voice()
    assert power(mixed(0.8 * said, -said)) == pytest.approx(power(said), rel=0.01)


@pytest.mark.parametrize(
    "channels",
    [
        lambda said: [said],
        lambda said: [said, said],
        lambda said: [said, 0 * said],
        lambda said: [said, voice()],
        lambda said: [said, -0.3 * said],
        lambda said: [said, np.roll(said, 8)],
        lambda said: [said, voice(level=0.001), 0 * said, 0 * said],
        lambda said: [0.5 * said + voice(level=0.1), 0.5 * said - voice(level=0.1)],
        lambda said: [*(said + voice(level=0.02) for _ in range(8))],
    ],
)
@pytest.mark.parametrize("block", [160, 1152, 100_000])
def test_other_channels_are_averaged_bit_by_bit(channels: object, block: int) -> None:
    assert callable(channels)
    rows = np.stack(channels(voice()), axis=1)
    mean = rows.mean(axis=1, dtype=np.float32)
    assert np.array_equal(mixed(*rows.T, block=block), mean)


def test_blocks_of_any_size_make_the_same_mix() -> None:
    said = voice()
    other = np.concatenate([said[:20_000], -said[20_000:30_000], voice()[30_000:]])
    whole = mixed(said, other, block=10**6)
    for block in (1, 333, STRETCH, 5000):
        assert np.allclose(mixed(said, other, block=block), whole, atol=1e-6)


def test_no_click_where_one_way_ends_and_another_begins() -> None:
    low = np.sin(2 * np.pi * 100 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    other = np.concatenate([0.5 * low[:20_000], -low[20_000:30_000], 0.5 * low[30_000:]])
    steps = np.abs(np.diff(mixed(low, other)))
    assert steps.max() < 2 * np.abs(np.diff(low)).max()
