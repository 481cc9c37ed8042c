"""Figures of associations and meaning: layers with their channels and times, strongest links, similarity, maps.

Axes: C channels, K intervals, N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eegvision.analyses.association import Link
from eegvision.analyses.semantic import SemanticSimilarity
from eegvision.report import scalp, style
from eegvision.report.sheet import LINE_MM, MINUS, SCALE_MM, WIDTH_MM, sheet, text_mm, wrapped
from eegvision.vocab import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAT = "YlOrRd"
_COLOURS = (
    style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.RED, style.GREY, style.BLACK,
)  # fmt: skip
_MARKS = "osD^vPX*"
_MOST_ROW_MM, _GAP_MM, _NAME_MM, _BARS_MM, _TICKS_MM = 21.0, 1.2, 24.0, 40.0, 13.0
_MOST_VISUALS = 5
_MOST_NAMED = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRow:
    """One layer of the image encoder: a row of the paper's Figure 9.

    `visuals` are (number of the feature map, the picture that activates it most, uint8 [H, W, 3]), `value_C` the
    layer's association with each channel. `interval_K` is what each interval of time contributes to it, with standard
    errors where they are known.
    """

    layer: str
    n_maps: int
    visuals: tuple[tuple[int, np.ndarray], ...]
    value_C: np.ndarray
    interval_names: tuple[str, ...]
    interval_K: np.ndarray
    interval_error_K: np.ndarray | None = None


def layers_figure(
    rows: Sequence[LayerRow],
    positions_m: scalp.Positions,
    path: Path,
    *,
    channels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw a row per layer: what its features answer to, its channels, and when; the paper's Figure 9.

    Heads are scaled each from its least to its largest channel, then smoothed; bars are in the unit of F, with a scale
    of their own in each row, since layers with many maps have small means. The `.csv` has a line per layer with the
    values of channels and intervals as given.

    Args:
        rows: from the first layer to the last, all with the same intervals; up to five pictures each are drawn.
        positions_m: of the channels, [C, 3].
        path: of the figure, without ending.
        channels: names for the `.csv`.
    Returns:
        The files written.
    Raises:
        InputError: no rows, rows differ in channels or intervals, a picture is not uint8, or as `scalp.draw_scalp`.
    """
    _check_layers(rows)
    n_visuals = min(_MOST_VISUALS, max(len(row.visuals) for row in rows))
    side_mm = min(_MOST_ROW_MM, (WIDTH_MM - _NAME_MM - _BARS_MM - _TICKS_MM) / (n_visuals + 1) - _GAP_MM)
    heads_mm = _NAME_MM + n_visuals * (side_mm + _GAP_MM)
    bars_mm = heads_mm + side_mm + _TICKS_MM
    pitch_mm, top_mm = side_mm + LINE_MM + 1.4, LINE_MM + 1.5
    with sheet(bars_mm + _BARS_MM, top_mm + len(rows) * pitch_mm + 10 + SCALE_MM) as page:
        headings = {heads_mm + side_mm / 2: "channels", bars_mm + _BARS_MM / 2: "contribution of each interval"}
        if n_visuals:
            headings[(_NAME_MM + heads_mm - _GAP_MM) / 2] = "what activates single maps most"
        for middle_mm, heading in headings.items():
            page.text(middle_mm, 0, heading, ha="center", fontweight="bold")
        for number, row in enumerate(rows):
            row_mm = top_mm + number * pitch_mm
            name = [*wrapped(row.layer.replace("_", "_ "), _NAME_MM - 1, most_lines=3), f"{row.n_maps} maps"]
            page.text(0, row_mm + side_mm / 2, "\n".join(name).replace("_ ", "_"), va="center")
            for place, (feature, picture_HW3) in enumerate(row.visuals[:n_visuals]):
                left_mm = _NAME_MM + place * (side_mm + _GAP_MM)
                page.blank(left_mm, row_mm, side_mm, side_mm).imshow(picture_HW3)
                page.text(left_mm + side_mm / 2, row_mm + side_mm + 0.6, str(feature), ha="center")
            head = page.blank(heads_mm, row_mm, side_mm, side_mm)
            value_C = scalp.normalised(row.value_C)
            scalp.draw_scalp(head, value_C, positions_m, limits=(0, 1), cmap=HEAT)
            axes = page.axes(bars_mm, row_mm + 1, _BARS_MM, side_mm - 1)
            _interval_bars(axes, row, is_last=number == len(rows) - 1)
        label = (
            "association, each head from its least (0) to its largest channel (1); bars in the unit of compatibility"
        )
        page.scale(HEAT, (0, 0.5, 1), label, 0, page.height_mm - SCALE_MM)
        return style.save(page.figure, path, _layer_numbers(rows, channels))


def _interval_bars(axes: Axes, row: LayerRow, *, is_last: bool) -> None:
    place_K = np.arange(len(row.interval_K))
    axes.bar(place_K, row.interval_K, width=0.7, color=style.BLUE)
    if row.interval_error_K is not None:
        low_K, high_K = row.interval_K - row.interval_error_K, row.interval_K + row.interval_error_K
        axes.vlines(place_K, low_K, high_K, color=style.BLACK, linewidth=0.9)
    axes.axhline(0, color=style.BLACK, linewidth=0.6)
    axes.set_xlim(-0.6, len(place_K) - 0.4)
    axes.set_xticks(place_K, [""] * len(place_K))
    if is_last:
        is_ms = all(name.endswith(" ms") for name in row.interval_names)
        names = [name.removesuffix(" ms").replace(" to ", "–") for name in row.interval_names]
        if any(text_mm(name) > 0.8 * _BARS_MM / len(names) for name in names):
            names = [name.replace("–", "–\n") for name in names]
        axes.set_xticklabels(names)
        axes.set_xlabel("ms after onset" if is_ms else "interval", labelpad=1.5)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.tick_params(axis="y", length=2, pad=1.5)
    axes.locator_params(axis="y", nbins=3)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}".replace("-", MINUS))


def _check_layers(rows: Sequence[LayerRow]) -> None:
    if not rows:
        raise InputError("no layers to draw; give at least one")
    first = rows[0]
    for row in rows:
        errors = row.interval_K if row.interval_error_K is None else row.interval_error_K
        n_intervals = len(first.interval_names)
        if not (
            row.interval_names == first.interval_names
            and np.shape(row.interval_K) == np.shape(errors) == (n_intervals,)
            and np.shape(row.value_C) == np.shape(first.value_C)
        ):
            raise InputError(
                f"layer {row.layer!r} has values of shape {np.shape(row.value_C)}, intervals {row.interval_names} and "
                f"contributions of shape {np.shape(row.interval_K)}, which do not fit each other or layer "
                f"{first.layer!r}; give all layers the same channels and intervals"
            )
        for feature, picture_HW3 in row.visuals:
            if picture_HW3.dtype != np.uint8 or picture_HW3.ndim != 3 or picture_HW3.shape[2] != 3:
                raise InputError(
                    f"the picture of map {feature} of layer {row.layer!r} is {picture_HW3.dtype} of shape "
                    f"{picture_HW3.shape}; give uint8 [H, W, 3]"
                )


def _layer_numbers(rows: Sequence[LayerRow], channels: Sequence[str] | None) -> dict[str, list]:
    numbers: dict[str, list] = {"layer": [row.layer for row in rows], "n_maps": [row.n_maps for row in rows]}
    numbers["visualised"] = [" ".join(str(feature) for feature, _ in row.visuals) for row in rows]
    for k, name in enumerate(rows[0].interval_names):
        numbers[name] = [row.interval_K[k] for row in rows]
        if any(row.interval_error_K is not None for row in rows):
            numbers[f"{name}, standard error"] = [
                None if row.interval_error_K is None else row.interval_error_K[k] for row in rows
            ]
    value_LC = np.stack([row.value_C for row in rows])
    return numbers | dict(zip(scalp.column_names(channels, value_LC.shape[1]), value_LC.T.tolist(), strict=True))


def strongest_figure(links: Sequence[Link], path: Path) -> list[Path]:
    """Draw the strongest associations of a feature map with a channel as ranked dots, layers told apart.

    Args:
        links: of `association.strongest`, largest first.
        path: of the figure, without ending.
    Returns:
        The files written.
    Raises:
        InputError: no links.
    """
    if not links:
        raise InputError("no links to draw; ask `association.strongest` for at least one")
    layers = list(dict.fromkeys(link.layer for link in links))
    looks = {layer: (_COLOURS[n % len(_COLOURS)], _MARKS[n % len(_MARKS)]) for n, layer in enumerate(layers)}
    value_N = np.array([link.value for link in links])
    with style.figure(110, 20 + 3.6 * len(links) + 3.5 * -(-len(layers) // 3)) as figure:
        axes = figure.subplots()
        axes.hlines(
            np.arange(len(links)), np.minimum(value_N, 0), np.maximum(value_N, 0), color=style.GREY, linewidth=0.6
        )
        axes.axvline(0, color=style.BLACK, linewidth=0.6)
        for layer, (colour, mark) in looks.items():
            place = [n for n, link in enumerate(links) if link.layer == layer]
            axes.plot(value_N[place], place, mark, color=colour, markersize=4, markeredgewidth=0, label=layer)
        axes.set_yticks(range(len(links)), [f"map {link.feature} – {link.channel}" for link in links])
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(len(links) - 0.4, -0.6), xlabel="association (unit of compatibility)")
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=min(3, len(layers)), columnspacing=1.4, handletextpad=0.3)
        columns = ("layer", "feature", "channel", "value")
        return style.save(figure, path, {name: [getattr(link, name) for link in links] for name in columns})


def similarity_figure(similarity: SemanticSimilarity, path: Path) -> list[Path]:
    """Draw cosines of concepts, EEG by picture, categories side by side and parted by lines.

    Concepts are named where there are at most 60. The colours are even about 0. The `.csv` holds the matrix.

    Returns:
        The files written, for `path` without ending.
    """
    value_KK, n = similarity.similarity_KK, len(similarity.concepts)
    largest = float(np.abs(value_KK).max()) or 1.0
    is_named = n <= _MOST_NAMED
    side = min(150.0, 70 + 2.0 * n) if is_named else 120.0
    with style.figure(side + 18, side) as figure:
        axes = figure.subplots()
        shown = axes.imshow(value_KK, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="none")
        axes.spines[:].set_visible(True)
        for _, start, _ in similarity.runs[1:]:
            for draw in (axes.axhline, axes.axvline):
                draw(start - 0.5, color=style.BLACK, linewidth=0.6)
        if is_named:
            size = 7 if n <= 24 else 5.5
            axes.set_xticks(range(n), similarity.concepts, rotation=90, fontsize=size)
            axes.set_yticks(range(n), similarity.concepts, fontsize=size)
            axes.tick_params(length=1.5, pad=1.5)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        _name_runs(axes, similarity, 0.75 * side, is_named=is_named)
        axes.set_xlabel("pictures")
        beside_pt = 0 if is_named else 72 / 25.4 * max(text_mm(name) for name, _, _ in similarity.runs)
        axes.set_ylabel("EEG", labelpad=4 + beside_pt)
        figure.colorbar(shown, ax=axes, shrink=0.6, label="cosine", pad=0.02)
        p = "p < 0.001" if similarity.p < 0.001 else f"p = {similarity.p:.2g}"
        said = f"Cosine {similarity.within:.2f} within a category, {similarity.between:.2f} between two ({p})"
        figure.suptitle(said.replace("-", MINUS), x=0.01, ha="left", fontsize=8, fontweight="bold")
        names = {"concept": similarity.concepts, "category": similarity.categories}
        return style.save(figure, path, names | dict(zip(similarity.concepts, value_KK.T, strict=True)))


def _name_runs(axes: Axes, similarity: SemanticSimilarity, width_mm: float, *, is_named: bool) -> None:
    """Name categories above the columns, slanted where one is short, and beside the rows where concepts are not."""
    per_concept_mm = width_mm / len(similarity.concepts)
    is_tight = any(text_mm(name) > (stop - start) * per_concept_mm for name, start, stop in similarity.runs)
    rotation = 35 if is_tight else 0
    for name, start, stop in similarity.runs:
        middle = (start + stop - 1) / 2
        text = {"textcoords": "offset points", "annotation_clip": False, "fontsize": 7}
        axes.annotate(
            name, (middle, -0.5), xytext=(0, 3), ha="left" if rotation else "center", va="bottom", rotation=rotation,
            rotation_mode="anchor", **text,
        )  # fmt: skip
        if not is_named:
            axes.annotate(name, (-0.5, middle), xytext=(-3, 0), ha="right", va="center", **text)


def embedding_map_figure(
    position_N2: np.ndarray, names: Sequence[str], categories: Sequence[str], path: Path
) -> list[Path]:
    """Draw embeddings in two dimensions, categories told apart by colour and mark, concepts named where there is room.

    Concepts of several points are drawn as their mean, the points small and pale around it. Names that would cover
    another, or a mean, are left out. Axes have one scale and no unit. The `.csv` has a line per point.

    Args:
        position_N2: of `semantic.pca_map` or `semantic.mds_map`.
        names, categories: of each point.
        path: of the figure, without ending.
    Returns:
        The files written.
    Raises:
        InputError: no points, or not one name and category for each.
    """
    position_N2 = np.asarray(position_N2, dtype=np.float64)
    if position_N2.shape != (len(names), 2) or len(categories) != len(names) or not len(names):
        raise InputError(
            f"positions of shape {position_N2.shape}, {len(names)} names and {len(categories)} categories; give [N, 2] "
            "and one name and one category for each"
        )
    kinds = list(dict.fromkeys(categories))
    name_N, category_N = np.asarray(names), np.asarray(categories)
    n_columns = min(4, len(kinds))
    with style.figure(130, 118 + 3.5 * -(-len(kinds) // n_columns)) as figure:
        axes = figure.subplots()
        concepts = list(dict.fromkeys(names))
        middle_K2 = np.stack([position_N2[name_N == concept].mean(axis=0) for concept in concepts])
        kind_K = np.array([category_N[name_N == concept][0] for concept in concepts])
        has_clouds = len(concepts) < len(names)
        size = float(np.clip(60 / len(concepts) ** 0.5, 2.5, 5))
        for n, kind in enumerate(kinds):
            look = {"color": _COLOURS[n % len(_COLOURS)], "linestyle": "none", "markeredgewidth": 0}
            look["marker"] = _MARKS[(n + n // len(_COLOURS)) % len(_MARKS)]
            if has_clouds:
                axes.plot(*position_N2[category_N == kind].T, markersize=0.5 * size, alpha=0.4, **look)
            axes.plot(*middle_K2[kind_K == kind].T, markersize=size, alpha=0.9, label=kind, **look)
        axes.set(xticks=[], yticks=[], xlabel="first axis", ylabel="second axis")
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.06)
        figure.legend(loc="outside lower center", ncols=n_columns, columnspacing=1.4, handletextpad=0.3)
        figure.draw_without_rendering()  # places are known only after the layout
        _name_where_there_is_room(axes, concepts, middle_K2, size)
        numbers = {"name": list(names), "category": list(categories)}
        return style.save(figure, path, numbers | {"first": position_N2[:, 0], "second": position_N2[:, 1]})


def _name_where_there_is_room(axes: Axes, names: Sequence[str], place_K2: np.ndarray, size_pt: float) -> None:
    """Write each name beside its mark, to the right, left, above or below, unless it would cover something."""
    from matplotlib.transforms import Bbox

    frame = axes.get_window_extent()
    pixel_K2 = axes.transData.transform(place_K2)
    half = 0.5 * size_pt * axes.figure.dpi / 72
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in pixel_K2]
    away = 0.5 * size_pt + 1
    sides = (
        ((away, 0), "left", "center"), ((-away, 0), "right", "center"),
        ((0, away), "center", "bottom"), ((0, -away), "center", "top"),
    )  # fmt: skip
    for name, (x, y) in zip(names, place_K2.tolist(), strict=True):
        for shift, ha, va in sides:
            text = axes.annotate(name, (x, y), xytext=shift, textcoords="offset points", ha=ha, va=va, fontsize=6)
            text.set_in_layout(False)
            box = text.get_window_extent()
            is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                taken.append(box.padded(half))
                break
            text.remove()
