"""Figures of channels, times and rates: importance on the head, and what a model makes of a part of a segment.

Axes: G groups (classes, subjects), K intervals, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eegvision.analyses.windows import ViewScore
from eegvision.report import scalp, style
from eegvision.report.sheet import LINE_MM, MINUS, SCALE_MM, WIDTH_MM, sheet, wrapped
from eegvision.vocab import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAT, SIGNED = "YlOrRd", "RdBu_r"
_GAP_MM, _HEAD_MM = 1.0, 26.0
_KINDS = {"spatial": ("region", "channels"), "spectral": ("band", "rates")}


def class_scalps_figure(
    names: Sequence[str],
    mean_GC: np.ndarray,
    positions_m: scalp.Positions,
    path: Path,
    *,
    channels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw a head per class (or subject): which channels count most for it; the paper's Figure 6.

    Every head is scaled by itself, (v - min) / (max - min) over its channels, then smoothed, so that heads compare
    where, not how much. The `.csv` has a line per class with every channel's value as given.

    Args:
        names: of the G groups.
        mean_GC: mean importance, in the unit of F (`channels.ChannelAverages.mean_GC`).
        positions_m: of the channels, [C, 3].
        path: of the figure, without ending.
        channels: names for the `.csv`.
    Returns:
        The files written.
    Raises:
        InputError: no group, names and values do not fit, or as `scalp.draw_scalp`.
    """
    mean_GC = np.asarray(mean_GC, dtype=np.float64)
    if mean_GC.ndim != 2 or len(mean_GC) != len(names) or not len(names):
        raise InputError(f"values of shape {mean_GC.shape} for {len(names)} names; give [G, C] with a name per group")
    n_rows = -(-len(names) // (6 if len(names) <= 18 else 8 if len(names) <= 48 else 9))
    n_columns = -(-len(names) // n_rows)
    head_mm = min(_HEAD_MM, (WIDTH_MM + _GAP_MM) / n_columns - _GAP_MM)
    step_mm = head_mm + _GAP_MM
    titles = [wrapped(name, head_mm) for name in names]
    # A row is as high as its longest name wants.
    most_lines = [max(map(len, titles[row * n_columns : (row + 1) * n_columns])) for row in range(n_rows)]
    below_mm = np.cumsum([0.0, *(head_mm + LINE_MM * n + 1.6 for n in most_lines)])
    label = "importance, each head from its least (0) to its largest channel (1)"
    with sheet(max(n_columns * step_mm, 110), below_mm[-1] + SCALE_MM + 0.5) as page:
        for number, (value_C, lines) in enumerate(zip(mean_GC, titles, strict=True)):
            row, left_mm = number // n_columns, number % n_columns * step_mm
            top_mm = below_mm[row] + LINE_MM * most_lines[row] + 0.6
            page.text(left_mm + head_mm / 2, top_mm, "\n".join(lines), ha="center", va="bottom")
            axes = page.blank(left_mm, top_mm, head_mm, head_mm)
            scalp.draw_scalp(axes, scalp.normalised(value_C), positions_m, limits=(0, 1), cmap=HEAT)
        page.scale(HEAT, (0, 0.5, 1), label, 0, page.height_mm - SCALE_MM)
        columns = scalp.column_names(channels, mean_GC.shape[1])
        return style.save(page.figure, path, {"group": list(names)} | dict(zip(columns, mean_GC.T, strict=True)))


def interval_scalps_figure(
    overall_C: np.ndarray,
    intervals_s: Sequence[tuple[float, float]],
    mean_KC: np.ndarray,
    positions_m: scalp.Positions,
    path: Path,
    *,
    significant_C: np.ndarray | None = None,
    significant_KC: np.ndarray | None = None,
    channels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw importance over the whole segment and in each interval, on one scale about 0; the paper's Figure 7.

    Filled dots are electrodes in clusters beyond chance, pale ones the others. The `.csv` has a line per head with
    every channel's value, and a line of 0 and 1 for which are in clusters where that is given.

    Args:
        overall_C: mean importance over whole segments, in the unit of F.
        intervals_s: (from, to) after onset.
        mean_KC: mean importance when the model sees an interval alone.
        positions_m: of the channels, [C, 3].
        path: of the figure, without ending.
        significant_C, significant_KC: whether a channel is in a cluster beyond chance.
        channels: names for the `.csv`.
    Returns:
        The files written.
    Raises:
        InputError: shapes do not fit, there is no interval, or as `scalp.draw_scalp`.
    """
    overall_C, mean_KC = np.asarray(overall_C, dtype=np.float64), np.asarray(mean_KC, dtype=np.float64)
    if mean_KC.shape != (len(intervals_s), len(overall_C)) or not len(intervals_s):
        raise InputError(
            f"values of shape {overall_C.shape} and {mean_KC.shape} for {len(intervals_s)} intervals; "
            "give [C] and [K, C]"
        )
    marks = [significant_C, *([None] * len(mean_KC) if significant_KC is None else significant_KC)]
    if len(marks) != 1 + len(mean_KC):
        raise InputError(f"{len(marks) - 1} rows of marks for {len(mean_KC)} intervals; give one for each")
    names = ["whole segment", *(f"{1000 * low:.0f} to {1000 * high:.0f} ms" for low, high in intervals_s)]
    values = np.concatenate([overall_C[None], mean_KC])
    largest = float(np.abs(values).max()) or 1.0
    n_columns = min(len(names), 6)
    head_mm = min(34.0, (WIDTH_MM + _GAP_MM) / n_columns - _GAP_MM)
    step_mm, pitch_mm = head_mm + _GAP_MM, head_mm + LINE_MM + 2
    with sheet(max(n_columns * step_mm, 110), -(-len(names) // n_columns) * pitch_mm + SCALE_MM + 1.5) as page:
        for number, (name, value_C, is_marked_C) in enumerate(zip(names, values, marks, strict=True)):
            left_mm, top_mm = number % n_columns * step_mm, number // n_columns * pitch_mm
            weight = "bold" if number == 0 else "normal"
            page.text(left_mm + head_mm / 2, top_mm + LINE_MM + 0.6, name, ha="center", va="bottom", fontweight=weight)
            scalp.draw_scalp(
                page.blank(left_mm, top_mm + LINE_MM + 0.6, head_mm, head_mm), value_C, positions_m,
                limits=(-largest, largest), cmap=SIGNED, is_marked_C=is_marked_C,
            )  # fmt: skip
        label = "mean importance (compatibility lost without the channel)"
        is_tested = any(mark is not None for mark in marks)
        label += "; large dots: in a cluster beyond chance" if is_tested else ""
        bar = page.scale(SIGNED, (-largest, 0, largest), label, 0, page.height_mm - SCALE_MM)
        bar.ax.set_xticklabels([f"{MINUS}{largest:.2g}", "0", f"{largest:.2g}"])
        columns = scalp.column_names(channels, len(overall_C))
        lines = [(name, "importance", *value_C) for name, value_C in zip(names, values, strict=True)]
        lines += [
            (name, "in_cluster", *np.asarray(mark, dtype=int))
            for name, mark in zip(names, marks, strict=True)
            if mark is not None
        ]
        numbers = dict(zip(("head", "what", *columns), zip(*lines, strict=True), strict=True))
        return style.save(page.figure, path, numbers)


def views_figure(scores: Sequence[ViewScore], kind: Literal["spatial", "spectral"], path: Path) -> list[Path]:
    """Draw retrieval from each region (or band) alone and from all but it, with intervals, beside all and chance.

    Args:
        scores: of the views of `windows.region_views` or `windows.band_views`, the one called `all` among them.
        kind: regions or bands.
        path: of the figure, without ending.
    Returns:
        The files written.
    Raises:
        InputError: no view called `all`, one that is neither `only` nor `without` something, or an unknown kind.
    """
    if kind not in _KINDS:
        raise InputError(f"kind is {kind!r}; expected {' or '.join(_KINDS)}")
    whole, pairs = _paired(scores)
    part, every = _KINDS[kind]
    with style.figure(120, 26 + 9.5 * len(pairs)) as figure:
        axes = figure.subplots()
        axes.axvspan(100 * whole.low, 100 * whole.high, color=style.GREY, alpha=0.25, linewidth=0)
        axes.axvline(
            100 * whole.accuracy, color=style.BLACK, linewidth=0.9, label=f"all {every} ({100 * whole.accuracy:.1f} %)"
        )
        chance = 100 * whole.chance
        dashed = {"color": style.BLACK, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 4}
        axes.axvline(chance, label=f"chance ({chance:.3g} %)", **dashed)
        looks = {
            "only": (style.BLUE, -0.2, f"this {part} alone"),
            "without": (style.ORANGE, 0.2, f"all but this {part}"),
        }
        for which, (colour, shift, label) in looks.items():
            found = [(at, pair[which]) for at, pair in enumerate(pairs.values()) if which in pair]
            place = np.array([at for at, _ in found]) + shift
            value = 100 * np.array([score.accuracy for _, score in found])
            axes.barh(place, value, height=0.34, color=colour, label=label, zorder=2)
            low, high = 100 * np.array([(score.low, score.high) for _, score in found]).reshape(-1, 2).T
            axes.hlines(place, low, high, color=style.BLACK, linewidth=0.8, zorder=3)
        axes.set_yticks(range(len(pairs)), list(pairs))
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(len(pairs) - 0.45, -0.55), xlabel=f"{_metric(whole)}, {100 * whole.level:.3g} % intervals")
        axes.set_xlim(left=0)
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.4, handlelength=1.4)
        return style.save(figure, path, _score_numbers({score.view.name: score for score in scores}))


def _paired(scores: Sequence[ViewScore]) -> tuple[ViewScore, dict[str, dict[str, ViewScore]]]:
    """Return the score of all, and those of each part by `only` and `without`."""
    whole = next((score for score in scores if score.view.name == "all"), None)
    if whole is None:
        raise InputError(
            f"none of {len(scores)} views is called 'all', which the others are compared with; score it too"
        )
    pairs: dict[str, dict[str, ViewScore]] = {}
    for score in scores:
        which, _, part = score.view.name.partition(" ")
        if score is whole:
            continue
        if which not in ("only", "without"):
            raise InputError(
                f"view {score.view.name!r} is neither 'only' nor 'without' a part; give views of "
                "`windows.region_views` or `windows.band_views`"
            )
        pairs.setdefault(part, {})[which] = score
    if not pairs:
        raise InputError("no view of a part to draw; score those of at least one region or band")
    return whole, pairs


def windows_figure(
    growing: Sequence[ViewScore],
    shrinking: Sequence[ViewScore],
    sliding: Sequence[ViewScore],
    path: Path,
    *,
    sfreq_hz: float,
    t_min_s: float,
) -> list[Path]:
    """Draw retrieval over time, from [0, t], from [t, end] and from windows of one width, with intervals and chance.

    Args:
        growing, shrinking, sliding: scores of `windows.growing_windows`, `shrinking_windows` and `sliding_windows`;
            an empty one has no panel.
        path: of the figure, without ending.
        sfreq_hz, t_min_s: rate of the segments, and when their first sample was taken after onset.
    Returns:
        The files written.
    Raises:
        InputError: no scores at all, or a view without samples.
    """
    kinds = {"growing": growing, "shrinking": shrinking, "sliding": sliding}
    curves = {kind: _over_time(scores, sfreq_hz, t_min_s) for kind, scores in kinds.items() if scores}
    if not curves:
        raise InputError("no windows to draw; score at least one view of time")
    colours = {"growing": style.BLUE, "shrinking": style.ORANGE, "sliding": style.GREEN}
    first = next(scores[0] for scores in kinds.values() if scores)
    with style.figure(max(60 * len(curves), 85), 62) as figure:
        panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (kind, (time_N2, rows)) in zip(panels, curves.items(), strict=True):
            at = 1000 * (time_N2[:, 1] if kind == "growing" else time_N2[:, 0])
            accuracy, low, high = 100 * np.array([(row.accuracy, row.low, row.high) for row in rows]).T
            axes.fill_between(at, low, high, color=colours[kind], alpha=0.25, linewidth=0)
            axes.plot(at, accuracy, color=colours[kind], marker="o", markersize=2.5)
            axes.axhline(100 * first.chance, color=style.BLACK, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
            width_ms = 1000 * float(np.median(time_N2[:, 1] - time_N2[:, 0]))
            titles = {"growing": "0 to t", "shrinking": "t to the end", "sliding": f"t to t + {width_ms:.0f} ms"}
            axes.set(title=f"Seen: {titles[kind]}", xlabel="t (ms after onset)")
        _name_chance(panels[-1], 100 * first.chance)
        panels[0].set_ylabel(_metric(first))
        panels[0].set_ylim(bottom=0)
        numbers = _score_numbers(
            {f"{kind}: {row.view.name}": row for kind, (_, rows) in curves.items() for row in rows}
        )
        times = np.concatenate([time_N2 for time_N2, _ in curves.values()])
        which = {"kind": [kind for kind, (_, rows) in curves.items() for _ in rows]}
        return style.save(figure, path, which | {"from_s": times[:, 0], "to_s": times[:, 1]} | numbers)


def _over_time(scores: Sequence[ViewScore], sfreq_hz: float, t_min_s: float) -> tuple[np.ndarray, list[ViewScore]]:
    """Return the (from, to) of each window in seconds, [N, 2], sorted, and the scores in this order."""
    for score in scores:
        if score.view.samples is None:
            raise InputError(f"view {score.view.name!r} shows all samples; give views of windows of time")
    ordered = sorted(scores, key=lambda score: score.view.samples or (0, 0))
    sample_N2 = np.array([score.view.samples for score in ordered], dtype=np.float64)
    return t_min_s + sample_N2 / sfreq_hz, ordered


def _name_chance(axes: Axes, chance: float) -> None:
    axes.annotate(
        f"chance\n{chance:.3g} %", (1, chance), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", va="center", annotation_clip=False,
    )  # fmt: skip


def _metric(score: ViewScore) -> str:
    return f"top-{score.top_k} of pictures (%)"


def _score_numbers(scores: dict[str, ViewScore]) -> dict[str, list[Any]]:
    fields = ("encoded", "top_k", "accuracy", "low", "high", "level", "draw_error", "chance", "n_draws", "n_images")
    return {"view": list(scores)} | {name: [getattr(score, name) for score in scores.values()] for name in fields}
