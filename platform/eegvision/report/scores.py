"""The scores of one evaluation as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eegvision.report.grid_tables import Cell, Table

_GALLERIES = {
    "exact-image": "the picture itself",
    "class-centre": "class centres",
    "class-centre-without-stimulus": "class centres of other pictures",
    "text": "texts",
}


def scores_table(found: Mapping[str, Any], *, group_name: str = "all") -> Table:
    """Return the scores over all queries, or those of each group of one kind, with what they must be read with.

    Args:
        found: an evaluation as stored in `RUN/evaluations/`.
        group_name: all, subject, class or category.
    """
    rows: dict[str, tuple[Cell, ...]] = {}
    for row in found["rows"]:
        if row["group_name"] != group_name:
            continue
        is_struck = found["dataset"]["grade"] == "red"
        levels = {"chance": row["chance"], "line": row["significance_line"], "low": row["low"], "high": row["high"]}
        if row["metric"] == "median rank":
            cell = Cell(value=None, text=f"{row['value']:g} (chance {row['chance']:g})", is_struck=is_struck)
        else:
            cell = Cell(value=row["value"], is_struck=is_struck, **levels)
        p = "" if row["p"] is None else f"{row['p']:.4f}" if row["p"] >= 0.0001 else "< 0.0001"
        what = f"{row['probe_side']} probe" if row["probe_side"] else _GALLERIES[row["gallery"]]
        group = "" if group_name == "all" else f"{row['group']}, "
        counts = f"{row['n_queries']} of {row['n_images']}"
        rows[f"{group}{what}: {row['metric']}"] = (cell, Cell(value=None, text=p), Cell(value=None, text=counts))
    return Table(
        title=f"{found['run']}, trial {found['trial']}: {found['protocol']} on the {found['side']} side",
        caption=_circumstances(found),
        columns=("score", "p", "queries of pictures"),
        rows=rows,
        notes=_notes(found),
    )


def _circumstances(found: Mapping[str, Any]) -> str:
    row = found["rows"][0]
    repetitions = {row["repetitions"] for row in found["rows"] if row["repetitions"]}
    ways = {row["n_gallery"] for row in found["rows"] if row["n_gallery"]}
    parts = [
        f"Data set {found['dataset']['name']!r} (order audit: {found['dataset']['grade']})",
        f"split {row['split']}",
        found["selection"],
        f"{row['n_channels']} channels",
        *([f"{' or '.join(map(str, sorted(repetitions)))} averaged per query"] if repetitions > {1} else []),
        *([f"gallery of {' or '.join(map(str, sorted(ways)))}"] if ways else []),
        *([f"unit length: {row['normalise']}"] if row["normalise"] else []),
        *([f"transductive: {row['transductive']}"] if row["transductive"] != "none" else []),
    ]
    return ", ".join(parts) + "."


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = []
    if found["side"] == "val":
        notes.append(
            "The model was chosen on these very pictures, which flatters it; only the test side can confirm it."
        )
    elif found["opening"]:
        opening = found["opening"]
        notes.append(
            f"Opening {opening['number']} of {opening['of']} of this test set, for {opening['models']} "
            f"{'model' if opening['models'] == 1 else 'models'} at once (ledger line {opening['line']})."
        )
    notes.append("p: pictures trade identities; all presentations of one move together.")
    return notes
