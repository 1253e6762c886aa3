"""The benchmark as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stt_cascade.bench.engine import Result
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.labelled import Labelled


def cost_by_length(
    results: Sequence[Result], clips: Sequence[tuple[Labelled, Samples]], file: Path
) -> None:
    """Seconds of work against seconds of audio, one dot a clip; written as PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no screen
    from matplotlib import pyplot as plt

    seconds = [len(samples) / SAMPLE_RATE for _, samples in clips]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        axes.plot(seconds, [heard.seconds for heard in result.heard], ".", ms=4, label=result.name)
    axes.set(
        xlabel="clip, s", ylabel="cost, s", title="What a clip costs", yscale="log", xlim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
