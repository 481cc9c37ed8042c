"""A figure whose panels lie where they are put, in millimetres: what grids of pictures and heads are drawn on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eegvision.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.text import Text

WIDTH_MM = 180.0
"""Of two columns of a journal."""
LINE_MM = 3.0
"""From one line of small print to the next."""
SCALE_MM = 6.0
"""Height of a colour bar with its ticks."""
MINUS = "\N{MINUS SIGN}"
_BAR_MM = 28.0
_POINTS_PER_MM = 72 / 25.4
_LETTER = 0.6  # mean width of a letter, in its size


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """A figure without automatic layout; places are millimetres from its left and top edges."""

    figure: Figure
    width_mm: float
    height_mm: float

    def axes(self, left_mm: float, top_mm: float, width_mm: float, height_mm: float) -> Axes:
        """Return new axes whose frame, without its labels, lies there."""
        bottom_mm = self.height_mm - top_mm - height_mm
        return self.figure.add_axes(
            (
                left_mm / self.width_mm,
                bottom_mm / self.height_mm,
                width_mm / self.width_mm,
                height_mm / self.height_mm,
            )
        )

    def blank(self, left_mm: float, top_mm: float, width_mm: float, height_mm: float) -> Axes:
        """Return new axes without frame and ticks, for a picture or a head."""
        axes = self.axes(left_mm, top_mm, width_mm, height_mm)
        axes.set_axis_off()
        return axes

    def text(self, left_mm: float, top_mm: float, words: str, **given: Any) -> Text:
        """Write words whose upper left corner, unless `ha` and `va` say otherwise, is there."""
        x, y = left_mm / self.width_mm, 1 - top_mm / self.height_mm
        options: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": 7} | given
        return self.figure.text(x, y, words, **options)

    def scale(self, cmap: str, ticks: Sequence[float], label: str, left_mm: float, top_mm: float) -> Colorbar:
        """Draw a colour bar from the first tick to the last, what it means to its right; it is `SCALE_MM` high."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        axes = self.axes(left_mm, top_mm, _BAR_MM, 2.0)
        colours = ScalarMappable(Normalize(ticks[0], ticks[-1]), cmap)
        bar = self.figure.colorbar(colours, cax=axes, orientation="horizontal", ticks=list(ticks))
        bar.outline.set_linewidth(0.4)  # type: ignore[operator]
        axes.tick_params(labelsize=7, width=0.5, length=2, pad=1.5)
        self.text(left_mm + _BAR_MM + 3.0, top_mm + 1.0, label, va="center")
        return bar


@contextmanager
def sheet(width_mm: float, height_mm: float) -> Iterator[Sheet]:
    """Yield an empty sheet in our style."""
    with style.figure(width_mm, height_mm) as figure:
        figure.set_layout_engine("none")
        yield Sheet(figure=figure, width_mm=width_mm, height_mm=height_mm)


def text_mm(words: str, *, size_pt: float = 7) -> float:
    """Return about how wide words are."""
    return len(words) * _LETTER * size_pt / _POINTS_PER_MM


def wrapped(words: str, width_mm: float, *, size_pt: float = 7, most_lines: int = 2) -> list[str]:
    """Return words in lines that fit a width, the last one cut with … where they do not."""
    letters = max(3, int(width_mm * _POINTS_PER_MM / (_LETTER * size_pt)))
    return textwrap.wrap(words, letters, max_lines=most_lines, placeholder="…") or [""]
