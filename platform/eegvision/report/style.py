"""How our figures look, and how they are saved; the one place that sets fonts and colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours: told apart with any colour vision.
BLACK, GREY, BLUE, SKY = "#000000", "#999999", "#0072B2", "#56B4E9"
GREEN, ORANGE, RED, PURPLE = "#009E73", "#E69F00", "#D55E00", "#CC79A7"
_STYLE = {
    "font.family": "sans-serif", "font.size": 7, "axes.titlesize": 8, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2, "legend.frameon": False,
    "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "eegvision",
}  # fmt: skip
_DPI = 200


@contextmanager
def figure(width_mm: float, height_mm: float) -> Iterator[Figure]:
    """Yield an empty figure in our style; made without pyplot, so that no state outlives it and threads may draw."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")


def save(drawn: Figure, path: Path, numbers: Mapping[str, Any], *, is_quick: bool = False) -> list[Path]:
    """Save a figure as `.svg`, `.pdf` and `.png` beside a `.csv` of its numbers; return the files written.

    `is_quick` leaves out the `.png` and the search for what stands out of the frame, which halves the time.
    """
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    # No date inside, so that the same numbers give the same file.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}} | ({} if is_quick else {"png": {}})
    written = [path.with_name(f"{path.name}.{ending}") for ending in (*dates, "csv")]
    frame: dict[str, Any] = {} if is_quick else {"bbox_inches": "tight", "pad_inches": 0.03}
    for file, metadata in zip(written[:-1], dates.values(), strict=True):
        drawn.savefig(file, dpi=_DPI, metadata=metadata, **frame)
    pd.DataFrame(dict(numbers)).to_csv(written[-1], index=False)
    return written
