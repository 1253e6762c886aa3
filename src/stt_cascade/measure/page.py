"""What was measured, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto }
.verdict { padding: .6rem 1rem; border-left: .4rem solid; background: #f6f6f6 }
.verdict { white-space: pre-line }
.good { border-color: #2a7d2a } .bad { border-color: #c0392b }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #ddd } .verdict { background: #23262a }
  th, td { border-color: #3a3d42 } img { background: #fff }
}
"""


class Page:
    """Is built from top to bottom.

    Args:
        title: of the whole.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]

    def verdict(self, text: str, *, good: bool) -> None:
        """What it comes to, first and large."""
        self._parts.append(
            f'<p class="verdict {"good" if good else "bad"}">{html.escape(text)}</p>'
        )

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        def row(cells: Sequence[object], tag: str) -> str:
            inside = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
            return f"<tr>{inside}</tr>"

        body = "".join(row(cells, "td") for cells in rows)
        self._parts.append(f"<table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>")

    def figure(self, figure: Figure, says: str) -> None:
        """A plot.

        Args:
            says: in a sentence, for those who do not see it.
        """
        data = base64.b64encode(png(figure)).decode()
        self._parts.append(
            f'<p><img alt="{html.escape(says, quote=True)}" src="data:image/png;base64,{data}"></p>'
        )

    def html(self) -> bytes:
        """All of it."""
        head = f'<meta charset="utf-8"><title>{html.escape(self._title)}</title>'
        text = f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>"
        return (text + "\n".join(self._parts) + "</body></html>\n").encode(
            "utf-8", "xmlcharrefreplace"
        )


def png(figure: Figure) -> bytes:
    """A plot as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def plot(rows: int = 1, height: float = 4.0) -> tuple[Figure, Sequence[Axes]]:
    """A figure of so many plots one below the other, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for each in axes:
        each.grid(alpha=0.3)
    return figure, list(axes)
