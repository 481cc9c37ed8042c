"""Charts of a study, drawn once in our paper style for files and once for the page; chance is on every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eegvision.report import panels, style
from eegvision.report.importance import Effect
from eegvision.report.tables import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.RED)
MOST_MODELS = len(_COLOURS)
_WIDTHS_PX = {"full": 3.05 * panels.PANEL_PX, "half": 1.5 * panels.PANEL_PX}
_PX_PER_MM = 5.2  # of the page, where type is larger than on paper
_ROW_PX = 21
_MOST_CLASSES_WITH_NUMBERS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """One drawing: `draw` is given empty axes and whether the place is narrow; `numbers` are what it shows.

    `name` is its file's and unique in a report; `caption` says what is seen, with the circumstances.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Axes, bool], None]
    height_px: float
    numbers: Mapping[str, Any]
    place: Literal["full", "half"] = "half"
    narrow_height_px: float | None = None

    def html(self) -> str:
        """Return it as inline SVG for the page, once for wide and once for narrow screens."""
        drawn = {}
        for end, width_px, height_px in (
            ("wide", _WIDTHS_PX[self.place], self.height_px),
            ("narrow", panels.PANEL_PX, self.narrow_height_px or self.height_px),
        ):
            with panels.panel(f"{self.name}-{end}", self.title, height_px, width_px) as panel:
                self.draw(panel.axes, end == "narrow")
            drawn[end] = panel.svg
        return f'<div class="wide-only">{drawn["wide"]}</div><div class="narrow-only">{drawn["narrow"]}</div>'

    def save(self, folder: Path) -> list[Path]:
        """Save it as SVG and PDF with its numbers as CSV; return the files."""
        width_mm = 180 if self.place == "full" else 105
        with style.figure(width_mm, max(40.0, self.height_px / _PX_PER_MM)) as figure:
            axes = figure.subplots()
            self.draw(axes, False)
            return style.save(figure, folder / self.name, self.numbers, is_quick=True)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A score with its interval, chance and significance line, as shares; struck where an audit says so."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    line: float | None = None
    is_struck: bool = False


def dots(name: str, title: str, caption: str, groups: Mapping[str, Sequence[Dot]], metric: str) -> Chart:
    """Scores on a common axis, a row per label; `groups` are models told apart by colour.

    The mark of each row is chance, the dashed one the significance line.
    """
    shown = dict(list(groups.items())[:MOST_MODELS])
    labels = list(dict.fromkeys(dot.label for own in shown.values() for dot in own))
    rows = [(model, dot) for model, own in shown.items() for dot in own]
    n_lines = len(labels) * (1 + 0.45 * (len(shown) - 1))

    def draw(axes: Axes, is_narrow: bool) -> None:
        for number, (model, own) in enumerate(shown.items()):
            place = {label: at for at, label in enumerate(labels)}
            y = [place[dot.label] + _offset(number, len(shown)) for dot in own]
            colour = _COLOURS[number]
            for at, dot in zip(y, own, strict=True):
                if dot.low is not None and dot.high is not None:
                    axes.plot([100 * dot.low, 100 * dot.high], [at, at], color=colour, linewidth=1.4, alpha=0.55)
                mark, shade = ("x", style.RED) if dot.is_struck else ("o", colour)
                axes.plot(100 * dot.value, at, mark, color=shade, markersize=5.5, markeredgewidth=1.8)
            axes.plot([], [], "o", color=colour, markersize=5, label=_cut(model, 44 if is_narrow else 90))
        _levels_by_row(axes, labels, [dot for _, dot in rows])
        axes.set_yticks(range(len(labels)), [_cut(label, 26 if is_narrow else 60) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.6)
        axes.set_xlabel(f"{metric} (%)")
        handles = axes.get_legend_handles_labels()
        wanted = [(h, label) for h, label in zip(*handles, strict=True) if len(shown) > 1 or label not in shown]
        _legend(axes, wanted, 1 if is_narrow else 2)

    legend_px = 16 * (len(shown) if len(shown) > 1 else 0)
    height_px = 78 + _ROW_PX * max(2.0, n_lines) + 18
    return Chart(
        name=name, title=title, caption=caption, draw=draw, place="full",
        height_px=height_px + legend_px / 2, narrow_height_px=height_px + legend_px + 14,
        numbers={
            "model": [model for model, _ in rows],
            **{key: [getattr(dot, key) for _, dot in rows] for key in Dot.__dataclass_fields__},
        },
    )  # fmt: skip


def _offset(number: int, n: int) -> float:
    return 0.0 if n == 1 else 0.62 * (number / (n - 1) - 0.5)


def _levels_by_row(axes: Axes, labels: Sequence[str], rows: Sequence[Dot]) -> None:
    """Mark chance and significance line: one line through all rows where they agree, else a piece in each."""
    for attribute, label, dashes in (("chance", "chance", "-"), ("line", "significance line", (0, (4, 3)))):
        found = {(dot.label, getattr(dot, attribute)) for dot in rows}
        known = [(name, level) for name, level in found if level is not None and np.isfinite(level)]
        if not known:
            continue
        given = {"color": _ink(axes), "linestyle": dashes, "linewidth": 0.9, "zorder": 1}
        values = {level for _, level in known}
        if len(values) == 1:
            level = values.pop()
            axes.axvline(100 * level, label=f"{label} {_number(100 * level)} %", **given)
            continue
        place = {name: at for at, name in enumerate(labels)}
        for name, level in known:
            axes.plot([100 * level] * 2, [place[name] - 0.42, place[name] + 0.42], **given)
        axes.plot([], [], label=f"{label} (by row)", **given)


def passes(
    name: str, title: str, caption: str, histories: Mapping[str, Sequence[float]], best: str, metric: str,
    chance: float | None, line: float | None, is_struck: bool = False,
) -> Chart:  # fmt: skip
    """A metric after every pass of every trial, the best trial bold; shares in per cent unless it is a loss."""
    scale = 1 if metric.endswith("loss") else 100

    def draw(axes: Axes, is_narrow: bool) -> None:
        for label, values in histories.items():
            x, y = np.arange(1, len(values) + 1), scale * np.array(values)
            is_best = label == best
            axes.plot(
                x, y, color=style.BLUE if is_best else style.GREY, linewidth=2 if is_best else 0.9,
                alpha=1 if is_best else 0.65, zorder=3 if is_best else 2, marker="." if len(values) < 30 else None,
                linestyle=":" if is_struck else "-",
            )  # fmt: skip
        _levels(axes, chance, line)
        axes.plot([], [], color=style.BLUE, linewidth=2, label=_cut(best, 40))
        if len(histories) > 1:
            axes.plot([], [], color=style.GREY, label=f"{len(histories) - 1} others")
        _passes_axis(axes, max(map(len, histories.values())))
        axes.set_ylabel(metric if scale == 1 else f"{metric} (%)")
        if scale == 100:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.6)
        _legend(axes, None, 1 if is_narrow else 2)

    points = [(label, at, value) for label, values in histories.items() for at, value in enumerate(values, start=1)]
    numbers = dict(zip(("trial", "pass", metric), zip(*points, strict=True), strict=True))
    return Chart(name=name, title=title, caption=caption, draw=draw, height_px=300, numbers=numbers)


def losses(name: str, title: str, caption: str, history: Sequence[Mapping[str, float]], best_pass: int) -> Chart:
    """Training and validation loss of one trial, its best pass marked; guessing has no level of loss of its own."""
    names = [key for key in ("train/loss", "val/loss") if all(key in done for done in history)]

    def draw(axes: Axes, is_narrow: bool) -> None:
        x = np.arange(1, len(history) + 1)
        for key, colour in zip(names, (style.GREY, style.BLUE), strict=False):
            words = {"train/loss": "training", "val/loss": "validation"}[key]
            axes.plot(x, [done[key] for done in history], color=colour, marker=".", label=words)
        axes.axvline(best_pass, color=style.RED, linewidth=1, linestyle="--", label=f"best pass ({best_pass})")
        _passes_axis(axes, len(history))
        axes.set_ylabel("loss")
        axes.grid(axis="y", alpha=0.6)
        _legend(axes, None, 2 if is_narrow else 3)

    numbers = {"pass": list(range(1, len(history) + 1)), **{key: [done[key] for done in history] for key in names}}
    return Chart(name=name, title=title, caption=caption, draw=draw, height_px=300, numbers=numbers)


def parallel(
    name: str, title: str, caption: str, settings: Mapping[str, Sequence[Any]], score_N: Sequence[float],
    metric: str, chance: float | None, is_struck: bool = False,
) -> Chart:  # fmt: skip
    """Parallel coordinates: a line per trial through its settings to its score, pale to dark by rank.

    Words have a place each, numbers a common scale (logarithmic over more than a factor of 20); what a trial does not
    have is at the foot. On narrow screens the first four settings are drawn.
    """
    import matplotlib as mpl

    order = np.argsort(score_N, kind="stable")  # the best ones are drawn last, on top

    def draw(axes: Axes, is_narrow: bool) -> None:
        names = list(settings)[: 3 if is_narrow else 7]
        places = [_places(settings[key]) for key in names]
        top = 1.06 * max(100 * max(score_N), 100 * (chance or 0), 1e-9)
        colours = mpl.colormaps["viridis_r"]
        for rank, trial in enumerate(order.tolist()):
            y = [at[trial] for at, _ in places] + [100 * score_N[trial] / top]
            shade = colours(0.08 + 0.84 * (rank + 1) / len(order))
            is_best = rank == len(order) - 1
            axes.plot(
                range(len(y)), y, color=style.RED if is_best else shade, linewidth=2.4 if is_best else 1.1,
                alpha=1 if is_best else 0.75, linestyle=":" if is_struck else "-",
            )  # fmt: skip
        for at, (_, ticks) in enumerate(places):
            axes.axvline(at, color=_ink(axes), linewidth=0.8, zorder=1)
            for y, text in ticks:
                axes.annotate(
                    text, (at, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small",
                    bbox={"facecolor": _ground(axes), "edgecolor": "none", "pad": 0.8, "alpha": 0.8}, zorder=5,
                )  # fmt: skip
        axes.axvline(len(names), color=_ink(axes), linewidth=0.8, zorder=1)
        to_score: Any = partial(np.multiply, top)
        right = axes.secondary_yaxis("right", functions=(to_score, partial(np.multiply, 1 / top)))
        right.set_ylabel(f"{metric} (%)")
        if chance is not None:
            where = (len(names), 100 * chance / top)
            axes.plot(*where, "_", color=_ink(axes), markersize=14)
            axes.annotate(
                "chance", where, xytext=(-8, 3), textcoords="offset points", ha="right", fontsize="small", zorder=5
            )
        axes.set_xticks(range(len(names) + 1), [*names, "score"])
        axes.set_yticks([])
        axes.set(xlim=(-0.06, len(names)), ylim=(-0.06, 1.06))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(axis="x", length=0)

    numbers = {**{key: [str(value) for value in values] for key, values in settings.items()}, metric: list(score_N)}
    return Chart(name=name, title=title, caption=caption, draw=draw, height_px=330, numbers=numbers, place="full")


def _places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the height of each value in [0, 1] and the labels of the axis; None is at the foot."""
    known = [value for value in values if value is not None]
    foot = 0.12 if len(known) < len(values) else 0.0
    ticks = [(0.0, "none")] if foot else []
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if is_number and len(set(known)) > 4:
        low, high = min(known), max(known)
        scale = np.log10 if low > 0 and high / low > 20 else float
        span = float(scale(high) - scale(low)) or 1.0
        height = {value: foot + (1 - foot) * float(scale(value) - scale(low)) / span for value in known}
        ticks += [(height[low], short(low)), (height[high], short(high))]
    else:
        levels = sorted(set(known)) if is_number else list(dict.fromkeys(map(str, known)))
        step = (1 - foot) / max(1, len(levels) - 1)
        height = {level: foot + step * at if len(levels) > 1 else 0.5 for at, level in enumerate(levels)}
        ticks += [(height[level], short(level)) for level in levels]
        if not is_number:
            return [0.0 if value is None else height[str(value)] for value in values], ticks
    return [0.0 if value is None else height[value] for value in values], ticks


def effects(name: str, title: str, caption: str, found: Sequence[Effect]) -> Chart:
    """Main effects of the settings with intervals, and what a setting without effect would reach in one of 20."""

    def draw(axes: Axes, is_narrow: bool) -> None:
        y = np.arange(len(found))
        axes.barh(y, [100 * effect.share for effect in found], color=style.BLUE, height=0.5, alpha=0.85)
        for at, effect in zip(y, found, strict=True):
            axes.plot([100 * effect.low, 100 * effect.high], [at, at], color=_ink(axes), linewidth=1.1)
            axes.plot([100 * effect.null_high] * 2, [at - 0.36, at + 0.36], color=style.RED, linewidth=1.6)
        axes.plot([], [], color=_ink(axes), linewidth=1.1, label="95 % interval")
        axes.plot([], [], color=style.RED, linewidth=1.6, label="no effect stays below this in 95 %")
        axes.set_yticks(y, [f"{effect.name} ({effect.n_trials})" for effect in found])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set(xlim=(0, 100), xlabel="share of the variance of ranks (%)")
        axes.grid(axis="x", alpha=0.6)
        _legend(axes, None, 1 if is_narrow else 2)

    numbers = {key: [getattr(effect, key) for effect in found] for key in Effect.__dataclass_fields__}
    height_px = 86 + 26 * max(2, len(found))
    return Chart(
        name=name, title=title, caption=caption, draw=draw, height_px=height_px, numbers=numbers,
        narrow_height_px=height_px + 22, place="full",
    )  # fmt: skip


def repetitions(
    name: str, title: str, caption: str, rows: Sequence[Mapping[str, Any]], is_struck: bool = False
) -> Chart:
    """Accuracy against presentations averaged: a line per subject, their mean bold, and the band of guessing."""
    counts = sorted({row["repetitions"] for row in rows})
    by_subject: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_subject.setdefault(str(row.get("subject", "all")), {})[row["repetitions"]] = row
    metric, chance = str(rows[0].get("metric", "top-1")), rows[0]["chance"]

    def draw(axes: Axes, is_narrow: bool) -> None:
        from matplotlib.ticker import FixedLocator, NullLocator

        null = [[own[count]["null_high"] for own in by_subject.values() if count in own] for count in counts]
        high = 100 * np.array([float(np.mean(values)) for values in null])
        axes.fill_between(counts, 0, high, color=style.GREY, alpha=0.3, linewidth=0, label="guessing, 97.5 % of it")
        for own in by_subject.values():
            x = [count for count in counts if count in own]
            y = 100 * np.array([own[count]["accuracy"] for count in x])
            if len(by_subject) == 1:
                lower, upper = (100 * np.array([own[count][end] for count in x]) for end in ("low", "high"))
                axes.fill_between(x, lower, upper, color=style.BLUE, alpha=0.2, linewidth=0, label="95 % interval")
            else:
                axes.plot(x, y, color=style.SKY, linewidth=0.9)
        mean = [np.mean([own[count]["accuracy"] for own in by_subject.values() if count in own]) for count in counts]
        n = len(by_subject)
        label = "accuracy" if n == 1 else f"mean of {n} subjects"
        line = ":" if is_struck else "-"
        axes.plot(counts, 100 * np.array(mean), line, color=style.BLUE, linewidth=2, marker="o", label=label)
        if n > 1:
            axes.plot([], [], color=style.SKY, linewidth=0.9, label="subjects")
        axes.axhline(100 * chance, color=_ink(axes), linewidth=0.9, label=f"chance {_number(100 * chance)} %")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="presentations averaged", ylabel=f"{metric} (%)")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.6)
        _legend(axes, None, 2 if is_narrow else 3)

    keys = ("subject", "repetitions", "accuracy", "low", "high", "null_high", "chance")
    numbers = {key: [row.get(key) for row in rows] for key in keys}
    return Chart(name=name, title=title, caption=caption, draw=draw, height_px=320, numbers=numbers)


def confusion(
    name: str, title: str, caption: str, names: Sequence[str], count_KK: np.ndarray, is_struck: bool = False
) -> Chart:
    """How often the first was taken for the second, in per cent of the row, on a scale from 0 to at least 50 %."""
    n_K = count_KK.sum(axis=1)
    percent_KK = 100 * count_KK / np.maximum(n_K, 1)[:, None]
    n_classes = len(names)
    has_numbers = n_classes <= _MOST_CLASSES_WITH_NUMBERS

    def draw(axes: Axes, is_narrow: bool) -> None:
        top = max(50.0, float(percent_KK.max(initial=0)))
        picture = axes.imshow(percent_KK, cmap="Greys" if is_struck else "Blues", vmin=0, vmax=top)
        step = max(1, -(-n_classes // (20 if is_narrow else 42)))
        at = range(0, n_classes, step)
        size = "small" if n_classes <= 20 else "x-small"
        axes.set_xticks(at, [_cut(names[k], 14) for k in at], rotation=90, fontsize=size)
        axes.set_yticks(at, [_cut(names[k], 14) for k in at], fontsize=size)
        axes.set(xlabel="taken for", ylabel="shown")
        axes.spines[["top", "right"]].set_visible(True)
        if has_numbers and not (is_narrow and n_classes > 8):
            for row, column in np.argwhere(count_KK):
                # The map is light at its low end whatever the page's colours.
                colour = "#ffffff" if percent_KK[row, column] > 0.6 * top else "#222222"
                text = f"{percent_KK[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize="small", color=colour)
        bar = axes.figure.colorbar(picture, ax=axes, shrink=0.55, label="share of the row (%)")
        chance = 100 / n_classes
        bar.ax.axhline(chance, color=style.RED, linewidth=1.2)
        bar.ax.annotate(
            "chance", (0, chance), xycoords=("axes fraction", "data"), xytext=(-3, 0), textcoords="offset points",
            ha="right", va="center", fontsize="x-small", color=style.RED,
        )  # fmt: skip

    rows, columns = np.indices(count_KK.shape)
    numbers = {
        "shown": [names[k] for k in rows.ravel()],
        "taken for": [names[k] for k in columns.ravel()],
        "count": count_KK.ravel().tolist(),
    }
    return Chart(
        name=name, title=title, caption=caption, draw=draw, height_px=430, narrow_height_px=330, numbers=numbers
    )


def _levels(axes: Axes, chance: float | None, line: float | None) -> None:
    for level, label, dashes in ((chance, "chance", "-"), (line, "significance line", (0, (4, 3)))):
        if level is not None and np.isfinite(level):
            text = f"{label} {_number(100 * level)} %"
            axes.axhline(100 * level, color=_ink(axes), linewidth=0.9, linestyle=dashes, label=text, zorder=1)


def _passes_axis(axes: Axes, n_passes: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("passes over the training set")
    axes.set_xlim(1 - 0.02 * n_passes, n_passes + 0.02 * n_passes + 0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Axes, wanted: Sequence[tuple[Any, str]] | None, ncols: int) -> None:
    """Put the legend below the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels() if wanted is None else zip(*wanted, strict=True)
    if labels:
        axes.figure.legend(handles, labels, loc="outside lower left", ncols=ncols, columnspacing=1.4)  # type: ignore[arg-type]


def _ink(axes: Axes) -> Any:
    """Return the colour of text, which on a page is the page's."""
    return axes.xaxis.label.get_color()


def _ground(axes: Axes) -> Any:
    """Return the colour behind the axes: the page's where it is one of the page's, else white."""
    return panels.GROUND if _ink(axes) == panels.INK else "#ffffff"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _number(value: float) -> str:
    return f"{value:.3g}"
