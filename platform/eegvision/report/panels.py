"""Drawings for pages: inline SVG that takes ink, lines and fonts from the page, so that it follows light and dark.

A panel is drawn as wide as its place, so that its text keeps its size: `PANEL_PX` is a phone, or a third of a wide
page. A page may let it grow, though never to more than `_MOST_PX` (or its own height) in height.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from eegvision.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

PANEL_PX = 360
FEWEST_MAPPED = 8  # electrodes of a scalp map
_MOST_PX = 320
# Stand-ins that become the page's own colours.
INK, _MUTED, _LINE, GROUND = "#010203", "#707172", "#d0d1d2", "#fdfcfb"
_VARIABLES = {
    style.BLUE.lower(): "var(--blue)",
    INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    GROUND: "var(--card)",
}
_PX_PER_INCH = 96.0
_STYLE = {
    "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": _MUTED, "axes.titlecolor": INK,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "grid.color": _LINE, "grid.linewidth": 0.6, "lines.linewidth": 1.4, "legend.frameon": False,
    "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "eegvision", "axes.axisbelow": True,
}  # fmt: skip
REGION_COLOURS = {
    "frontal": style.PURPLE, "central": style.ORANGE, "temporal": style.GREEN, "parietal": style.SKY,
    "occipital": style.BLUE, "other": style.GREY,
}  # fmt: skip
_MOST_DOTS = 3000  # as vectors; more are stored as pixels
_HEAD_SIDE = 100  # of an interpolated scalp map, in points of the grid
# In radii of the head: how far a scalp map reaches beyond the outermost electrodes, and from the nearest one (more
# where they are sparse).
_MARGIN, _FARTHEST = 0.12, (0.25, 0.4)
_MOST_TICKS = 9
_SHOWN_POWER = 1e-6  # of the highest power: what a spectrum shows


class Panel:
    """A drawing in the making: `axes` to draw on, afterwards `svg`."""

    axes: Axes
    svg: str = ""


@contextmanager
def panel(name: str, alt: str, height_px: float, width_px: float = PANEL_PX, *, pixels: float = 2.0) -> Iterator[Panel]:
    """Yield a panel with empty axes, and turn what was drawn into its `svg`.

    `name` is unique in the page; what is not drawn as vectors gets `pixels` for each of the screen's.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width_px / _PX_PER_INCH, height_px / _PX_PER_INCH), layout="constrained")
        drawn = Panel()
        drawn.axes = figure.subplots()
        yield drawn
        file = io.StringIO()
        figure.savefig(file, format="svg", dpi=pixels * _PX_PER_INCH, metadata={"Date": None})
    drawn.svg = _inline(file.getvalue(), name, alt, max(_MOST_PX, height_px) * width_px / height_px)


def _inline(text: str, name: str, alt: str, most_px: float) -> str:
    """Make a stand-alone SVG part of a page: own ids, the page's colours and fonts."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    text = re.sub(r"font: ((?:bold |700 )?[\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    opening = text[: text.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box, "Matplotlib wrote an SVG without a viewBox"
    start = f'<svg {box[0]} role="img" aria-label="{alt}" style="max-width:{most_px:.0f}px" '
    return start + 'xmlns:xlink="http://www.w3.org/1999/xlink">' + text[len(opening) :].strip()


def power_unit(unit: str) -> str:
    """Return the unit of power density of what is measured in `unit`; a z-score has none."""
    return "1/Hz" if unit == "z-score" else f"{unit}²/Hz"


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    """Label 1, 2, 5, 10, ... where there is room, else powers of ten."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    if not 0 < low < high:
        return
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    if len(ticks) < 2:
        ticks = [low, high]
    if len(ticks) <= _MOST_TICKS:
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.set_minor_formatter(NullFormatter())


def evoked(
    name: str,
    region: str,
    times_s: np.ndarray,
    evoked_ST: np.ndarray,
    unit: str,
    limits: Sequence[float],
    width_px: float = PANEL_PX,
) -> str:
    """Draw mean and sd over subjects of a region's evoked response against time in ms; 0 ms is the onset."""
    mean_T, sd_T = evoked_ST.mean(axis=0), evoked_ST.std(axis=0)
    title = region.capitalize()
    with panel(name, f"Evoked response, {title}", 190 if width_px <= PANEL_PX else 230, width_px) as drawn:
        axes, times_ms = drawn.axes, 1000 * times_s
        colour = REGION_COLOURS[region]
        axes.axhline(0, color=_LINE, linewidth=0.8)
        axes.axvline(0, color=_MUTED, linewidth=1, linestyle="--")
        axes.annotate(
            "onset",
            (0, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -8),
            textcoords="offset points",
            fontsize=7.5,
            color=_MUTED,
        )
        if len(evoked_ST) > 1:
            axes.fill_between(times_ms, mean_T - sd_T, mean_T + sd_T, color=colour, alpha=0.25, linewidth=0)
        axes.plot(times_ms, mean_T, color=colour, linewidth=1.8)
        axes.set(title=title, xlabel="time after onset (ms)", ylabel=f"mean ({unit})", ylim=limits)
        first = min(0.0, times_ms[0])
        axes.set_xlim(first - 0.04 * (times_ms[-1] - first), times_ms[-1])
    return drawn.svg


def scalp(
    name: str, title: str, position_C2: np.ndarray, value_C: np.ndarray, limits: Sequence[float], cmap: str
) -> str:
    """Draw values on the head seen from above, interpolated by thin plates around the electrodes, which are dots."""
    import matplotlib as mpl
    from matplotlib.patches import Circle, Polygon
    from scipy.interpolate import RBFInterpolator

    side = np.linspace(-1, 1, _HEAD_SIDE)
    grid_P2 = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    smooth = RBFInterpolator(position_C2, value_C, kernel="thin_plate_spline", smoothing=1e-4)
    colours = mpl.colormaps[cmap](mpl.colors.Normalize(*limits, clip=True)(smooth(grid_P2)))
    colours[:, 3] = _covered(grid_P2, position_C2)
    with panel(name, f"Scalp map, {title}", 158, 140, pixels=1.5) as drawn:
        axes = drawn.axes
        axes.add_patch(Polygon([(-0.12, 0.97), (0, 1.13), (0.12, 0.97)], closed=False, fill=False, ec=_MUTED, lw=1.2))
        picture = colours.reshape(_HEAD_SIDE, _HEAD_SIDE, 4)
        shown = axes.imshow(picture, extent=(-1, 1, -1, 1), origin="lower", interpolation="bilinear")
        head = Circle((0, 0), 1, fill=False, edgecolor=_MUTED, linewidth=1.2)
        axes.add_patch(head)
        shown.set_clip_path(head)
        axes.plot(*position_C2.T, ".", color="#222222", markersize=1.6)
        axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.16), aspect="equal")
        axes.set_title(title, loc="center", fontweight="normal", fontsize=9, pad=2)
        axes.set_axis_off()
    return drawn.svg


def can_map(positions_m: Sequence[Sequence[float]]) -> bool:
    """Tell whether there are electrodes enough for a scalp map, and not all of them in one line."""
    if len(positions_m) < FEWEST_MAPPED:
        return False
    place_C2 = flat_positions(positions_m)
    return float(np.linalg.svd(place_C2 - place_C2.mean(axis=0), compute_uv=False)[1]) > _MARGIN


def _covered(grid_P2: np.ndarray, position_C2: np.ndarray) -> np.ndarray:
    """Return 1 between the electrodes and up to a margin around them, 0 elsewhere, with a soft edge."""
    from scipy.spatial import ConvexHull, KDTree

    hull = ConvexHull(position_C2)
    corner_K2 = position_C2[hull.vertices]
    along = np.linspace(0, 1, 50)[:, None, None]
    edge_Q2 = ((1 - along) * corner_K2 + along * np.roll(corner_K2, -1, axis=0)).reshape(-1, 2)
    is_inside_P = (grid_P2 @ hull.equations[:, :2].T + hull.equations[:, 2] <= 0).all(axis=1)
    outside_P = np.where(is_inside_P, 0.0, KDTree(edge_Q2).query(grid_P2)[0])
    electrodes = KDTree(position_C2)
    spacing = float(np.median(electrodes.query(position_C2, 2)[0][:, 1]))
    farthest = float(np.clip(spacing, *_FARTHEST))
    far_P = np.maximum(outside_P - _MARGIN, electrodes.query(grid_P2)[0] - farthest)
    return np.clip(0.5 - far_P * (_HEAD_SIDE - 1) / 2, 0, 1)


def flat_positions(positions_m: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Return head positions [C, 2] seen from above: distance from the top along the head, its rim at 1.

    (x, y) * theta / (r sin theta)        theta: angle from straight up, divided by 0.65 pi
    """
    xyz_C3 = np.asarray(positions_m, dtype=np.float64)
    # A sphere through the electrodes, whose centre is where all are equally far.
    system = np.column_stack([2 * xyz_C3, np.ones(len(xyz_C3))])
    centre = np.linalg.lstsq(system, (xyz_C3**2).sum(axis=1), rcond=None)[0][:3]
    unit_C3 = xyz_C3 - centre
    unit_C3 /= np.linalg.norm(unit_C3, axis=1, keepdims=True)
    theta_C = np.arccos(np.clip(unit_C3[:, 2], -1, 1))
    across_C2 = unit_C3[:, :2] / np.maximum(np.linalg.norm(unit_C3[:, :2], axis=1, keepdims=True), 1e-9)
    return across_C2 * np.minimum(theta_C / (0.65 * np.pi), 1.0)[:, None]


def spreads(
    name: str, channels: Sequence[str], std_C: np.ndarray, bad: set[str], unit: str, width_px: float = PANEL_PX
) -> str:
    """Draw the standard deviation of every channel, sorted; those named bad in red."""
    order = np.argsort(std_C, kind="stable")
    with panel(name, "Standard deviation of every channel", 240, width_px) as drawn:
        axes = drawn.axes
        is_bad = np.array([channels[c] in bad for c in order])
        place, value = np.arange(len(order)), np.maximum(std_C[order], 1e-30)
        axes.grid(axis="y")
        axes.plot(place[~is_bad], value[~is_bad], "o", color=style.BLUE, markersize=3.5, label="channel")
        if is_bad.any():
            axes.plot(place[is_bad], value[is_bad], "X", color=style.RED, markersize=6, label="bad somewhere")
            axes.figure.legend(loc="outside lower left", ncols=2)
        top = value.max()
        if top > 8 * max(value.min(), top / 1e6):
            axes.set_yscale("log")
            _log_ticks(axes.yaxis, *axes.get_ylim())
        else:
            axes.set_ylim(0, 1.15 * top)
        axes.set(xticks=[], xlabel=f"{len(order)} channels, from quiet to loud", ylabel=f"standard deviation ({unit})")
    return drawn.svg


def spectrum(
    name: str,
    frequency_F: np.ndarray,
    power: Mapping[Any, np.ndarray],
    unit: str,
    lines_hz: Sequence[float],
    width_px: float = PANEL_PX,
) -> str:
    """Draw power density by region, both axes logarithmic, the power line's frequencies marked."""
    with panel(name, "Power spectrum by region", 250, width_px) as drawn:
        axes = drawn.axes
        used = frequency_F > 0
        axes.grid(which="major")
        for hz, side in zip(lines_hz, ("right", "left"), strict=True):
            if hz <= frequency_F[-1]:
                axes.axvline(hz, color=_MUTED, linestyle=":", linewidth=1)
                where = {"xycoords": ("data", "axes fraction"), "fontsize": 7.5, "color": _MUTED}
                axes.annotate(f" {hz:g} ", (hz, 1.01), ha=side, **where)
        for region, power_F in power.items():
            axes.plot(frequency_F[used], np.maximum(power_F[used], 1e-60), color=REGION_COLOURS[region], label=region)
        scale = "log" if used.any() else "linear"  # segments of one sample have no spectrum
        axes.set(xscale=scale, yscale=scale, xlabel="frequency (Hz)", ylabel=f"power density ({power_unit(unit)})")
        # What a filter took away may not take the whole scale.
        low, high = axes.get_ylim()
        top = max(float(power_F[used].max(initial=0.0)) for power_F in power.values())
        if top > 0:
            axes.set_ylim(max(low, _SHOWN_POWER * top), high)
        _log_ticks(axes.xaxis, *axes.get_xlim())
        _log_ticks(axes.yaxis, *axes.get_ylim())
        if len(power) > 1:
            axes.figure.legend(loc="outside lower left", ncols=4 if width_px <= PANEL_PX else 6, columnspacing=1.2)
    return drawn.svg


def amplitudes(name: str, edges_B: np.ndarray, count_B: np.ndarray, unit: str, width_px: float = PANEL_PX) -> str:
    """Draw how large samples are: their share by absolute value, on a logarithmic axis."""
    with panel(name, "Histogram of amplitudes", 250, width_px) as drawn:
        axes = drawn.axes
        share_B = 100 * count_B / max(1, count_B.sum())
        used = np.flatnonzero(share_B > 1e-3)
        visible = np.flatnonzero(share_B > 2e-2)  # the small ones tell nothing, the large ones of artefacts
        first, last = (int(visible[0]), int(used[-1]) + 1) if len(visible) else (0, len(share_B))
        axes.grid(axis="y")
        axes.stairs(share_B[first:last], edges_B[first : last + 1], fill=True, color=style.BLUE, alpha=0.8)
        axes.set(xscale="log", xlabel=f"absolute value of a sample ({unit})", ylabel="share of samples (%)")
        _log_ticks(axes.xaxis, *axes.get_xlim())
    return drawn.svg


def balance(name: str, names: Sequence[str], count_K: np.ndarray, width_px: float = PANEL_PX) -> str:
    """Draw segments per class: by name where there are few classes, else from the rarest to the most frequent."""
    is_few = len(names) <= 24
    height_px = min(max(150, 50 + 15 * len(names)), 310) if is_few else 230
    with panel(name, "Segments per class", height_px, width_px) as drawn:
        axes = drawn.axes
        if is_few:
            axes.barh(np.arange(len(names)), count_K, color=style.BLUE, height=0.7)
            font_size = min(9.0, 0.7 * (height_px - 50) / len(names))
            axes.set_yticks(np.arange(len(names)), [name[:18] for name in names], fontsize=font_size)
            axes.invert_yaxis()
            axes.set(xlabel="segments")
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
        else:
            axes.stairs(np.sort(count_K), np.arange(len(count_K) + 1), fill=True, color=style.BLUE)
            axes.set(xlabel=f"{len(count_K)} classes, from rare to frequent", ylabel="segments", ylim=(0, None))
            axes.grid(axis="y")
    return drawn.svg


def class_over_time(
    name: str, position_N: np.ndarray, label_N: np.ndarray, block_edges: Sequence[int], n_classes: int, width_px: float
) -> str:
    """Draw the class of every presentation of one recording against its place in the order.

    Classes are numbered by first appearance, so that classes in blocks make a staircase, and mixed ones a cloud.
    """
    from matplotlib.ticker import MaxNLocator

    _, first, row_N = np.unique(label_N, return_index=True, return_inverse=True)
    rank_K = np.empty(len(first), dtype=np.int64)
    rank_K[np.argsort(first)] = np.arange(len(first))
    is_many = len(position_N) > _MOST_DOTS
    alt = "Class of each presentation in the order of presentation"
    with panel(name, alt, 290, width_px, pixels=0.9 if is_many else 2.0) as drawn:
        axes = drawn.axes
        if len(block_edges) <= 120:
            for edge in block_edges:
                axes.axvline(edge - 0.5, color=_LINE, linewidth=0.7)
        size = float(np.clip(500 / len(position_N) ** 0.5, 3, 26))
        axes.scatter(
            position_N, rank_K[row_N] + 1, s=size, color=style.BLUE, linewidths=0, alpha=0.85, rasterized=is_many
        )
        axes.set(xlabel="place in the order of presentation", ylabel=f"class (of {n_classes}), by first appearance")
        axes.set_xlim(-1, position_N.max() + 1)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn.svg
