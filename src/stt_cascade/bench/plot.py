"""The benchmark as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stt_cascade.bench.engine import Result
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.labelled import Labelled
from stt_cascade.measure.page import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_by_length(results: Sequence[Result], clips: Sequence[tuple[Labelled, Samples]]) -> Figure:
    """Seconds of work against seconds of audio, one dot a clip."""
    seconds = [len(samples) / SAMPLE_RATE for _, samples in clips]
    figure, (axes,) = plot(height=5.0)
    for result in results:
        axes.plot(seconds, [heard.seconds for heard in result.heard], ".", ms=4, label=result.name)
    axes.set(
        xlabel="clip, s", ylabel="cost, s", title="What a clip costs", yscale="log", xlim=(0, None)
    )
    axes.legend()
    return figure
