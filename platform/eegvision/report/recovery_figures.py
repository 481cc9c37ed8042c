"""Figures of a recovery study: scores of models and controls beside chance, and planted against found scalps.

Axes: C channels, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eegvision.report import scalp, style
from eegvision.report.sheet import LINE_MM, SCALE_MM, sheet, wrapped
from eegvision.vocab import InputError

_COLOUR = {"trained": style.BLUE, "untrained": style.GREY, "shuffled": style.ORANGE}
_SCALP_MM, _GAP_MM = 32.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A quantity's scores: in what measure, chance, and for each arm (value, low, high) of every seed."""

    title: str
    measure: str
    chance: float
    of_arm: Mapping[str, Sequence[tuple[float, float, float]]]


def scores_figure(rows: Sequence[Scored], path: Path) -> list[Path]:
    """Draw a small panel per quantity: every seed of every arm with its interval, chance as a line.

    The `.csv` has a line per quantity, arm and seed, seeds counted from 1 in the order given.

    Args:
        rows: at least one, each with a seed in every arm.
        path: of the figure, without ending.
    Returns:
        The files written.
    Raises:
        InputError: no quantities, or an arm without a seed.
    """
    if not rows or not all(row.of_arm and all(map(len, row.of_arm.values())) for row in rows):
        raise InputError(f"{len(rows)} quantities, or an arm of one without a seed; give at least one score of each")
    n_columns = 3
    n_lines = -(-len(rows) // n_columns)
    with style.figure(180, 8 + 47 * n_lines) as drawn:
        panels = drawn.subplots(n_lines, n_columns, squeeze=False).ravel()
        for axes in panels[len(rows) :]:
            axes.set_axis_off()
        for axes, row in zip(panels, rows, strict=False):
            axes.axhline(row.chance, color=style.BLACK, linewidth=0.6, linestyle=(0, (4, 3)))
            for place, (arm, values) in enumerate(row.of_arm.items()):
                spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
                value_S, low_S, high_S = np.array(values).T
                axes.errorbar(
                    place + spread,
                    value_S,
                    yerr=np.clip([value_S - low_S, high_S - value_S], 0, None),
                    fmt="o",
                    markersize=3.2,
                    linewidth=0.9,
                    color=_COLOUR.get(arm, style.PURPLE),
                )
            axes.set_title("\n".join(wrapped(row.title, 46, size_pt=8)))
            axes.set_ylabel(row.measure)
            axes.set_xticks(range(len(row.of_arm)), list(row.of_arm))
            axes.set_xlim(-0.5, len(row.of_arm) - 0.5)
            axes.margins(y=0.12)
        drawn.supxlabel("a dot per seed, 95 % interval over pictures; dashed: chance", fontsize=7)
        lines = [
            (row.title, arm, seed, *values)
            for row in rows
            for arm, seeds in row.of_arm.items()
            for seed, values in enumerate(seeds, start=1)
        ]
        columns = ("quantity", "arm", "seed", "value", "low", "high")
        return style.save(drawn, path, dict(zip(columns, map(list, zip(*lines, strict=True)), strict=True)))


def planted_scalps_figure(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    positions_m: scalp.Positions,
    path: Path,
    *,
    channels: Sequence[str],
) -> list[Path]:
    """Draw a row per stretch of time, its columns what was planted and what each arm found, each least to largest.

    The `.csv` has a line per channel, the values as given.

    Args:
        rows: by name of the row, and within it by name of the column, values [C]; the same columns in every row.
        positions_m: of the channels, [C, 3].
        path: of the figure, without ending.
        channels: names for the `.csv`.
    Returns:
        The files written.
    Raises:
        InputError: no rows, rows with other columns, or values and positions that do not fit.
    """
    names = list(next(iter(rows.values()), ()))
    if not names or any(set(value_of) != set(names) for value_of in rows.values()):
        raise InputError(f"{len(rows)} rows of scalps, or rows that differ in columns; give each the same, {names}")
    left_mm, top_mm = 24.0, 2 * LINE_MM
    pitch_mm = _SCALP_MM + _GAP_MM
    with sheet(left_mm + len(names) * pitch_mm, top_mm + len(rows) * pitch_mm + SCALE_MM + 2) as page:
        for column, name in enumerate(names):
            middle_mm = left_mm + (column + 0.5) * pitch_mm - 0.5 * _GAP_MM
            page.text(middle_mm, 0, name, ha="center", fontsize=8, fontweight="bold" if column == 0 else "normal")
        for line, (row, value_of) in enumerate(rows.items()):
            row_mm = top_mm + line * pitch_mm
            page.text(0, row_mm + _SCALP_MM / 2, "\n".join(wrapped(row, left_mm - 2, most_lines=4)), va="center")
            for column, name in enumerate(names):
                axes = page.blank(left_mm + column * pitch_mm, row_mm, _SCALP_MM, _SCALP_MM)
                value_C = scalp.normalised(value_of[name])
                scalp.draw_scalp(axes, value_C, positions_m, limits=(0, 1), cmap="YlOrRd")
        page.scale("YlOrRd", [0, 0.5, 1], "least to largest of each map", left_mm, page.height_mm - SCALE_MM)
        numbers = {"channel": list(channels)}
        numbers |= {f"{row}: {name}": value_of[name].tolist() for row, value_of in rows.items() for name in names}
        return style.save(page.figure, path, numbers)
