"""Figures of saliency: maps beside the pictures and gaze, scales, retinotopic triplets; and the table of detectors.

Axes: H W pixels, S scales, C channels, M images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eegvision.analyses.semantic import RetinotopicTriplet
from eegvision.evaluate.saliency import METRICS, SaliencyScores
from eegvision.report import published, scalp, style
from eegvision.report.grid_tables import Cell, Table
from eegvision.report.sheet import LINE_MM, MINUS, SCALE_MM, WIDTH_MM, Sheet, sheet, wrapped
from eegvision.vocab import InputError

HEAT, HEAD_HEAT, SIGNED = "inferno", "YlOrRd", "RdBu_r"
_GAP_MM, _MOST_PANEL_MM = 1.2, 30.0
_HEAD_MM = 4.0  # of the headings
_PANELS_A_ROW = 8
_GAZE = "human gaze"
_CHANCE = {"s-auc": 0.5, "nss": 0.0, "cc": 0.0}


@dataclass(frozen=True, kw_only=True, eq=False)
class MapRow:
    """One picture with its maps: a row of the paper's Figure 5.

    `picture_HW3` is uint8, `gaze_HW` the density of fixations where there is gaze. `maps` are of any unit, by the name
    of their detector; `scores` says what maps score, by the same names, where that is known.
    """

    image_id: str
    class_name: str
    picture_HW3: np.ndarray
    gaze_HW: np.ndarray | None
    maps: Mapping[str, np.ndarray]
    scores: Mapping[str, float] = field(default_factory=dict)


def maps_figure(rows: Sequence[MapRow], path: Path, *, title: str, score: str = "NSS") -> list[Path]:
    """Draw a row per picture: the picture, human gaze where there is, and every detector's map.

    Every map is drawn from its least to its largest value. The `.csv` has a line per map: its score, both values and
    the centre of its mass above the least value, in pixels.

    Args:
        rows: all with maps of the same detectors, in the order of the first row.
        path: of the figure, without ending.
        title: a sentence.
        score: name of what `MapRow.scores` holds.
    Returns:
        The files written.
    Raises:
        InputError: no rows or maps; rows differ in detectors; a map is not finite, or a picture not uint8.
    """
    names = _detectors(rows)
    has_gaze = any(row.gaze_HW is not None for row in rows)
    heads = ["picture", *([_GAZE] if has_gaze else []), *names]
    side_mm = min(_MOST_PANEL_MM, (WIDTH_MM + _GAP_MM) / len(heads) - _GAP_MM)
    step_mm, pitch_mm = side_mm + _GAP_MM, side_mm + LINE_MM + 1.8
    lines = [wrapped(head, side_mm, size_pt=7.5) for head in heads]
    top_mm = _HEAD_MM + 1.5 + LINE_MM * max(map(len, lines))
    width_mm = max(len(heads) * step_mm - _GAP_MM, 85.0)
    with sheet(width_mm, top_mm + len(rows) * pitch_mm + SCALE_MM + 1) as page:
        page.text(0, 0, title, fontsize=8, fontweight="bold")
        for column, head in enumerate(lines):
            page.text((column + 0.5) * step_mm - 0.5 * _GAP_MM, top_mm - 1, "\n".join(head), ha="center", va="bottom")
        for number, row in enumerate(rows):
            row_mm = top_mm + number * pitch_mm
            page.blank(0, row_mm, side_mm, side_mm).imshow(row.picture_HW3)
            page.text(
                side_mm / 2, row_mm + side_mm + 0.7, wrapped(row.class_name, side_mm, most_lines=1)[0], ha="center"
            )
            for column, name in enumerate(heads[1:], start=1):
                left_mm = column * step_mm
                map_HW = row.gaze_HW if name == _GAZE else row.maps[name]
                if map_HW is None:
                    middle = {"ha": "center", "va": "center", "color": style.GREY}
                    page.text(left_mm + side_mm / 2, row_mm + side_mm / 2, "not recorded", **middle)
                    continue
                _heat(page, map_HW, left_mm, row_mm, side_mm)
                if name in row.scores:
                    words = f"{score} {row.scores[name]:z.2f}".replace("-", MINUS)
                    page.text(left_mm + side_mm / 2, row_mm + side_mm + 0.7, words, ha="center")
        label = "saliency, each map from its least (0) to its largest value (1)"
        page.scale(HEAT, (0, 0.5, 1), label, 0, page.height_mm - SCALE_MM)
        return style.save(page.figure, path, _map_numbers(rows, names, score))


def _detectors(rows: Sequence[MapRow]) -> list[str]:
    if not rows or not rows[0].maps:
        raise InputError(f"{len(rows)} rows of maps, the first without a map; give at least one picture with one map")
    names = list(rows[0].maps)
    for row in rows:
        if set(row.maps) != set(names):
            raise InputError(
                f"picture {row.image_id!r} has maps of {sorted(row.maps)}, the first one of {sorted(names)}; draw "
                "pictures with maps of the same detectors in one figure"
            )
        _require_picture(row.image_id, row.picture_HW3)
        for name, map_HW in [*row.maps.items(), *([(_GAZE, row.gaze_HW)] if row.gaze_HW is not None else [])]:
            if np.ndim(map_HW) != 2 or not np.isfinite(map_HW).all():
                raise InputError(
                    f"the {name} map of picture {row.image_id!r} has shape {np.shape(map_HW)} or values that are not "
                    "finite; give [H, W]"
                )
    return names


def _require_picture(image_id: str, picture_HW3: np.ndarray) -> None:
    if picture_HW3.ndim != 3 or picture_HW3.shape[2] != 3 or picture_HW3.dtype != np.uint8:
        raise InputError(
            f"picture {image_id!r} is {picture_HW3.dtype} of shape {picture_HW3.shape}; give the pixels as shown, "
            "uint8 [H, W, 3]"
        )


def _heat(page: Sheet, map_HW: np.ndarray, left_mm: float, top_mm: float, side_mm: float) -> None:
    page.blank(left_mm, top_mm, side_mm, side_mm).imshow(scalp.normalised(map_HW), cmap=HEAT, vmin=0, vmax=1)


def _map_numbers(rows: Sequence[MapRow], names: Sequence[str], score: str) -> dict[str, list[Any]]:
    lines = []
    for row in rows:
        gaze = {} if row.gaze_HW is None else {_GAZE: row.gaze_HW}
        for name, map_HW in {**gaze, **{name: row.maps[name] for name in names}}.items():
            spread_HW = np.asarray(map_HW, dtype=np.float64) - np.min(map_HW)
            centre = [_centre(spread_HW, axis) for axis in (1, 0)]
            known = row.scores.get(name)
            lines.append((row.image_id, row.class_name, name, known, np.min(map_HW), np.max(map_HW), *centre))
    columns = ("image", "class", "map", score, "least", "largest", "centre_row_px", "centre_column_px")
    return dict(zip(columns, map(list, zip(*lines, strict=True)), strict=True))


def _centre(weight_HW: np.ndarray, across: int) -> float:
    weight_X = weight_HW.sum(axis=across)
    total = weight_X.sum()
    return float(weight_X @ np.arange(len(weight_X)) / total) if total > 0 else (len(weight_X) - 1) / 2


def scale_figure(picture_HW3: np.ndarray, drop_SHW: np.ndarray, scales_px: Sequence[int], path: Path) -> list[Path]:
    """Draw S_sigma of every scale between the picture and their sum: what each size of patch adds to the map.

        S = sum over sigma of S_sigma                    Palazzo et al., arXiv 1810.10974, Eq. 3, 4, before it is scaled

    Each panel has a scale of its own, even about 0 and as wide as said below it, since large patches change far more
    than small ones. The `.csv` has a line per panel: largest loss and gain, and the standard deviation over pixels,
    which is the panel's weight in the sum.

    Args:
        picture_HW3: uint8.
        drop_SHW: compatibility lost with a patch at each pixel (`suppression.Saliency.drop_NSHW` of one segment).
        scales_px: side of the patch, one per scale.
        path: of the figure, without ending.
    Returns:
        The files written.
    Raises:
        InputError: scales and maps do not fit, a value is not finite, or the picture is not uint8.
    """
    drop_SHW = np.asarray(drop_SHW, dtype=np.float64)
    _require_picture("of the scales", picture_HW3)
    if drop_SHW.ndim != 3 or len(drop_SHW) != len(scales_px) or not len(scales_px) or not np.isfinite(drop_SHW).all():
        raise InputError(
            f"maps of shape {drop_SHW.shape} for {len(scales_px)} scales; give finite values [S, H, W], one per scale"
        )
    panels = {f"{size_px} px": drop_HW for size_px, drop_HW in zip(scales_px, drop_SHW, strict=True)}
    panels["sum"] = drop_SHW.sum(axis=0)
    n_columns = min(_PANELS_A_ROW, len(panels) + 1)
    n_rows = -(-(len(panels) + 1) // n_columns)
    side_mm = min(_MOST_PANEL_MM, (WIDTH_MM + _GAP_MM) / n_columns - _GAP_MM)
    step_mm, pitch_mm, top_mm = side_mm + _GAP_MM, side_mm + 2 * LINE_MM + 2.0, LINE_MM + 1.5
    with sheet(n_columns * step_mm - _GAP_MM, n_rows * pitch_mm + SCALE_MM + 1) as page:
        page.blank(0, top_mm, side_mm, side_mm).imshow(picture_HW3)
        page.text(side_mm / 2, top_mm - 0.8, "picture", ha="center", va="bottom")
        for number, (name, drop_HW) in enumerate(panels.items(), start=1):
            left_mm, row_mm = number % n_columns * step_mm, number // n_columns * pitch_mm + top_mm
            largest = float(np.abs(drop_HW).max())
            axes = page.blank(left_mm, row_mm, side_mm, side_mm)
            axes.imshow(drop_HW / (largest or 1.0), cmap=SIGNED, vmin=-1, vmax=1)
            weight = {"fontweight": "bold"} if name == "sum" else {}
            page.text(left_mm + side_mm / 2, row_mm - 0.8, name, ha="center", va="bottom", **weight)
            page.text(left_mm + side_mm / 2, row_mm + side_mm + 0.7, f"± {largest:.2g}", ha="center")
        label = "compatibility lost with a patch there, in the value below each map"
        page.scale(SIGNED, (-1, 0, 1), label, 0, page.height_mm - SCALE_MM)
        numbers = {
            "map": list(panels),
            "largest_loss": [drop_HW.max() for drop_HW in panels.values()],
            "largest_gain": [-drop_HW.min() for drop_HW in panels.values()],
            "sd": [drop_HW.std() for drop_HW in panels.values()],
        }
        return style.save(page.figure, path, numbers)


def triplets_figure(
    triplets: Sequence[RetinotopicTriplet],
    positions_m: scalp.Positions,
    path: Path,
    *,
    channels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw pictures, each beside its saliency and its channels' importance on the head: the paper's Figure 8.

    Saliency and importance are drawn from their least to their largest value. The `.csv` has a line per picture: the
    saliency's centre, subjects, and every channel's importance as given, in the unit of F.

    Args:
        triplets: of `semantic.retinotopic_triplet`; pictures uint8, or colours in [0, 1].
        positions_m: of the channels, [C, 3].
        path: of the figure, without ending.
        channels: names for the `.csv`.
    Returns:
        The files written.
    Raises:
        InputError: no triplets, a picture of other values, or positions are not known.
    """
    if not triplets:
        raise InputError("no triplets to draw; give at least one")
    pictures = [_colours(triplet) for triplet in triplets]
    n_beside = min(2 if len(triplets) < 5 else 3, len(triplets))
    between_mm = 5.0
    side_mm = min(_MOST_PANEL_MM, ((WIDTH_MM + between_mm) / n_beside - between_mm - 2 * _GAP_MM) / 3)
    step_mm, width_mm = side_mm + _GAP_MM, 3 * side_mm + 2 * _GAP_MM
    pitch_mm, top_mm = side_mm + 2.0, LINE_MM + 1.5
    n_rows = -(-len(triplets) // n_beside)
    with sheet(n_beside * (width_mm + between_mm) - between_mm, top_mm + n_rows * pitch_mm + SCALE_MM + 1) as page:
        for number, (triplet, picture_HW3) in enumerate(zip(triplets, pictures, strict=True)):
            left_mm = number % n_beside * (width_mm + between_mm)
            row_mm = top_mm + number // n_beside * pitch_mm
            page.blank(left_mm, row_mm, side_mm, side_mm).imshow(picture_HW3)
            _heat(page, triplet.saliency_HW, left_mm + step_mm, row_mm, side_mm)
            scalp.draw_scalp(
                page.blank(left_mm + 2 * step_mm, row_mm, side_mm, side_mm),
                scalp.normalised(triplet.importance_C), positions_m, limits=(0, 1), cmap=HEAD_HEAT,
            )  # fmt: skip
        for beside in range(n_beside):
            for column, name in enumerate(("picture", "saliency", "channels")):
                middle_mm = beside * (width_mm + between_mm) + column * step_mm + side_mm / 2
                page.text(middle_mm, top_mm - 0.8, name, ha="center", va="bottom")
        for place, (cmap, name) in enumerate(((HEAT, "saliency"), (HEAD_HEAT, "importance"))):
            place_mm = (place * page.width_mm / 2, page.height_mm - SCALE_MM)
            page.scale(cmap, (0, 0.5, 1), f"{name}, least to largest", *place_mm)
        return style.save(page.figure, path, _triplet_numbers(triplets, channels))


def _colours(triplet: RetinotopicTriplet) -> np.ndarray:
    """Return a picture as Matplotlib draws it, [H, W, 3]."""
    picture_HW3 = np.moveaxis(np.asarray(triplet.image_3HW), 0, -1)
    is_colour = picture_HW3.dtype == np.uint8 or (
        np.isfinite(picture_HW3).all() and picture_HW3.min() >= 0 and picture_HW3.max() <= 1
    )
    if not is_colour:
        raise InputError(
            f"the picture of {triplet.image_id!r} has values from {picture_HW3.min():.3g} to {picture_HW3.max():.3g}; "
            "give uint8 pixels or colours in [0, 1], not what a network sees"
        )
    return picture_HW3


def _triplet_numbers(triplets: Sequence[RetinotopicTriplet], channels: Sequence[str] | None) -> dict[str, list[Any]]:
    numbers: dict[str, list[Any]] = {
        "image": [triplet.image_id for triplet in triplets],
        "centre_row_px": [triplet.centre[0] for triplet in triplets],
        "centre_column_px": [triplet.centre[1] for triplet in triplets],
        "n_subjects": [triplet.n_subjects for triplet in triplets],
    }
    value_MC = np.stack([triplet.importance_C for triplet in triplets])
    names = scalp.column_names(channels, value_MC.shape[1])
    return numbers | dict(zip(names, value_MC.T.tolist(), strict=True))


def table_iv(rows: Mapping[str, SaliencyScores], *, caption: str = "", notes: Sequence[str] = ()) -> Table:
    """Return the paper's Table IV: s-AUC, NSS and CC of each detector, with intervals over images.

    A row whose name is one of `published.PALAZZO_IV` ("neural-driven", "classifier-driven", "human", ...) gets the
    published figures beside it; those the paper has besides follow. They are of real recordings and real gaze.

    Args:
        rows: scores by the name of the detector, of `saliency.score_maps` or `saliency.human_ceiling`.
        caption: what was measured on what.
        notes: what rows mean that the paper does not have.
    Raises:
        InputError: no rows, or scores of a single image, which have no interval.
    """
    if not rows:
        raise InputError("Table IV without a detector; score the maps of at least one")
    for name, scores in rows.items():
        if len(scores.image_ids) < 2:
            raise InputError(f"{name} was scored on {len(scores.image_ids)} image; intervals need at least two")
    missing = [name for name in published.PALAZZO_IV if name not in rows]
    sigmas = sorted({f"{scores.sigma_px:g}" for scores in rows.values()})
    counts = sorted({len(scores.image_ids) for scores in rows.values()})
    cells = {name: _detector_cells(scores, published.PALAZZO_IV.get(name)) for name, scores in rows.items()}
    cells |= {name: _detector_cells(None, published.PALAZZO_IV[name]) for name in missing}
    measured = (
        f"{' or '.join(map(str, counts))} images; CC against fixations smoothed by {' or '.join(sigmas)} px (sd)."
    )
    return Table(
        title="Table IV. Saliency",
        caption=f"{caption} {measured}".strip(),
        columns=("s-AUC", "NSS", "NSS, paper", "CC"),
        rows=cells,
        notes=(
            "NSS is in standard deviations of the map, and 0 by chance. Intervals are over images, drawn again.",
            *notes,
            "Paper: real recordings, and gaze of six viewers of the same 2,000 pictures; not to be compared with "
            "scores on simulated gaze. Its human row scores the gaze density on the very fixations it was made of, as "
            "the row `human` does.",
            published.PALAZZO_WARNING,
        ),
        source=published.PALAZZO.citation,
    )


def _detector_cells(scores: SaliencyScores | None, paper: tuple[float, float, float] | None) -> list[Cell]:
    known: dict[str, dict[str, Any]] = {metric: {"value": None} for metric in METRICS}
    if scores is not None:
        for metric in METRICS:
            low, high = scores.interval(metric)
            known[metric] = {"value": float(scores.of(metric).mean()), "low": low, "high": high}
    theirs = dict(zip(("s-auc", "nss", "cc"), paper or (None, None, None), strict=True))
    nss = known["nss"]
    said = "" if nss["value"] is None else f"{nss['value']:z.2f} [{nss['low']:z.2f}, {nss['high']:z.2f}]"
    return [
        Cell(**known["s-auc"], published=theirs["s-auc"], chance=_CHANCE["s-auc"]),
        Cell(value=None, text=said),
        Cell(value=None, text="" if theirs["nss"] is None else f"{theirs['nss']:.3f}"),
        Cell(**known["cc"], published=theirs["cc"], chance=_CHANCE["cc"]),
    ]
