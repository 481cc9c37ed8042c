"""Figures of runs and sweeps; the level of guessing is on every one of them.

A figure is saved four times under one name: `.svg` and `.pdf` for papers (text stays text), `.png` to look at and
`.csv` with the numbers it shows. Lengths are in millimetres of paper: one column is 85, two are 180.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eegvision.ingest.shards import Manifest
from eegvision.report import style
from eegvision.report.tables import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "val/top1": "top-1",
    "val/top5": "top-5",
    "val/class_top1": "class of top-1",
    "val/loss": "validation loss",
    "train/loss": "training loss",
    "val/accuracy": "right class",
}
_MOST_LETTERS = 28  # of a class beside a matrix

SHOWS_EEG = "examples"
"""Name of the figure with single segments of EEG, which are personal data: it is not sent to MLflow."""


def learning_curves(
    history: Sequence[Mapping[str, float]],
    path: Path,
    *,
    chance: Mapping[str, float],
    line: Mapping[str, float] | None = None,
    metric: str = "val/top1",
) -> list[Path]:
    """Draw loss and accuracy over the passes of one run, the best pass by `metric` marked.

    Args:
        history: metrics of each pass, from the first; accuracies as shares in [0, 1].
        path: of the figure, without ending.
        chance: level of guessing of each accuracy drawn, by name of the metric.
        line: what guessing seldom reaches, likewise; drawn for `metric`.
        metric: the one that picked the best pass.
    Returns:
        The files written.
    """
    passes = np.arange(1, len(history) + 1)
    values = {name: np.array([done[name] for done in history]) for name in _NAMES if name in history[0]}
    pick = np.argmin if metric == "val/loss" else np.argmax
    best = int(pick(values[metric]))
    with style.figure(180, 70) as figure:
        left, right = figure.subplots(1, 2)
        for name, colour in (("train/loss", style.GREY), ("val/loss", style.BLACK)):
            left.plot(passes, values[name], color=colour, marker=".", markersize=3, label=_NAMES[name])
        left.set(ylabel="loss", title="Loss")
        shares = [("val/top5", style.SKY), ("val/top1", style.BLUE), ("val/class_top1", style.ORANGE)]
        shares.append(("val/accuracy", style.BLUE))
        for place, (name, colour) in enumerate((name, colour) for name, colour in shares if name in values):
            label = f"{_NAMES[name]} (chance {100 * chance[name]:.3g} %)"
            right.plot(passes, 100 * values[name], color=colour, marker=".", markersize=3, label=label)
            # Dashes that leave room for those of the other lines: two levels can be the same.
            right.axhline(100 * chance[name], color=colour, linestyle=(3 * place, (4, 5)), linewidth=0.9, zorder=1)
        title = "Right class" if "val/accuracy" in values else "Retrieval of the picture from EEG"
        right.set(ylabel="accuracy (%), dashed: chance", title=f"{title} (validation)")
        if (level := (line or {}).get(metric, math.inf)) <= 1:
            right.axhline(100 * level, color=style.RED, linestyle=":", linewidth=0.9, zorder=1)
            right.plot([], [], ":", color=style.RED, label=f"significance line of {_NAMES[metric]}")
        right.set_ylim(bottom=0)
        for axes, is_shown in ((left, metric == "val/loss"), (right, metric != "val/loss")):
            _mark_passes(axes, len(history))
            axes.axvline(best + 1, color=style.GREY, linewidth=0.6, zorder=0)
            if is_shown:
                height = values[metric][best] * (1 if metric == "val/loss" else 100)
                axes.plot(
                    best + 1, height, "o", color=style.RED, markersize=4, label=f"best pass ({best + 1})", zorder=5
                )
            _legend_below(axes)
        return style.save(figure, path, {"pass": passes, **values})


def sweep_curves(
    trials: Sequence[Trial],
    path: Path,
    *,
    chance: Mapping[str, float],
    line: Mapping[str, float] | None = None,
    metric: str = "val/top1",
) -> list[Path]:
    """Draw `metric` of every trial over its passes: the best one bold, those stopped early pale.

    Args:
        trials: best first.
        path: of the figure, without ending.
        chance: level of guessing by metric; a metric without one (a loss) gets no line.
        line: what guessing seldom reaches in a sweep of so many trials, by metric.
        metric: what the trials were ranked by.
    Returns:
        The files written.
    """
    drawn = [trial for trial in trials if trial.history]
    scale, unit = (1, "") if metric == "val/loss" else (100, " accuracy (%)")
    with style.figure(120, 80) as figure:
        axes = figure.subplots()
        for trial in reversed(drawn):
            colour, width, alpha = style.GREY, 0.8, 0.6
            if trial.status == "finished":
                colour, width, alpha = style.BLUE, 0.9, 0.8
            elif trial.status != "stopped early":
                colour, width, alpha = style.PURPLE, 0.9, 1.0
            if trial is drawn[0]:
                colour, width, alpha = style.RED, 2.0, 1.0
            values = scale * np.array([done[metric] for done in trial.history])
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=width, alpha=alpha)
            mark = {"finished": ".", "stopped early": "."}.get(trial.status, "x")
            axes.plot(len(values), values[-1], mark, color=colour, alpha=alpha, markersize=4)  # where it ended
        levels = {"chance": (chance.get(metric), "--"), "line": ((line or {}).get(metric), ":")}
        for name, (level, dashes) in levels.items():
            if level is None or level > 1:
                continue
            axes.axhline(100 * level, color=style.BLACK, linestyle=dashes, linewidth=0.8, zorder=1)
            axes.annotate(
                f"{name} {100 * level:.3g} %", (1, 100 * level), xytext=(2, 0), va="center",
                xycoords=("axes fraction", "data"), textcoords="offset points", annotation_clip=False,
            )  # fmt: skip
        if metric != "val/loss":
            axes.set_ylim(bottom=0)  # last: it ends the axis' growing, and a name beyond it leaves the figure no room
        _mark_passes(axes, max(len(trial.history) for trial in drawn))
        axes.set(ylabel=f"{_NAMES[metric]}{unit}", title=f"{len(trials)} trials, validation")
        counts = Counter(trial.status for trial in trials)
        others = sum(count for status, count in counts.items() if status not in ("finished", "stopped early"))
        axes.plot([], [], color=style.RED, linewidth=2, label=f"best (trial {drawn[0].number})")
        axes.plot([], [], color=style.BLUE, marker=".", label=f"finished ({counts['finished']})")
        axes.plot([], [], color=style.GREY, alpha=0.6, marker=".", label=f"stopped early ({counts['stopped early']})")
        if others:
            axes.plot([], [], color=style.PURPLE, marker="x", markersize=4, label=f"failed or diverged ({others})")
        _legend_below(axes)
        points = [(t.number, t.status, i, done[metric]) for t in drawn for i, done in enumerate(t.history, start=1)]
        columns = zip(*points, strict=True)
        return style.save(figure, path, dict(zip(("trial", "status", "pass", metric), columns, strict=True)))


def confusion(
    label_Q: np.ndarray, retrieved_Q: np.ndarray, classes: Sequence[str], path: Path, *, chance: float
) -> list[Path]:
    """Draw how often the picture retrieved first for a segment is of each class, in per cent of the row.

    Args:
        label_Q: class of the picture shown; segments without one (-1) are left out.
        retrieved_Q: class of the picture ranked first.
        classes: names, in the order of the labels.
        path: of the figure, without ending.
        chance: share of the gallery of the right class, averaged over segments.
    Returns:
        The files written.
    """
    is_known_Q = (np.asarray(label_Q) >= 0) & (np.asarray(retrieved_Q) >= 0)
    n_classes = len(classes)
    count_KK = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(count_KK, (np.asarray(label_Q)[is_known_Q], np.asarray(retrieved_Q)[is_known_Q]), 1)
    n_K = count_KK.sum(axis=1)
    percent_KK = 100 * count_KK / np.maximum(n_K, 1)[:, None]
    accuracy = 100 * np.trace(count_KK) / max(1, count_KK.sum())
    is_small = n_classes <= 12
    side = 100 if is_small else 175
    with style.figure(side + 15, side) as figure:
        axes = figure.subplots()
        # From 0 to at least 50 %, so that a matrix of noise does not look like one of hits.
        top = max(50.0, float(percent_KK.max()))
        picture = axes.imshow(percent_KK, cmap="Blues", vmin=0, vmax=top)
        size = 6 if is_small else 4.5
        names = [name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…" for name in classes]
        axes.set_xticks(range(n_classes), names, rotation=90, fontsize=size)
        axes.set_yticks(range(n_classes), [f"{c} ({n})" for c, n in zip(names, n_K, strict=True)], fontsize=size)
        axes.set(xlabel="class of the picture retrieved first", ylabel="class of the picture shown (segments)")
        axes.set_title(f"Right class {accuracy:.1f} %, chance {100 * chance:.1f} % (n = {count_KK.sum()} segments)")
        axes.spines[["top", "right"]].set_visible(True)
        if is_small:
            for row, column in np.argwhere(count_KK):
                colour = "white" if percent_KK[row, column] > 0.6 * top else style.BLACK
                text = f"{percent_KK[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
        bar = figure.colorbar(picture, ax=axes, shrink=0.6, label="share of the row (%)")
        bar.ax.axhline(100 * chance, color=style.RED, linestyle="--", linewidth=1)
        bar.ax.text(-0.2, 100 * chance, "chance", color=style.RED, ha="right", va="center", fontsize=6)
        table = {"shown": list(classes), **{f"retrieved {c}": count_KK[:, k] for k, c in enumerate(classes)}}
        return style.save(figure, path, table)


def retrieval_examples(
    manifest: Manifest,
    predictions: Mapping[str, np.ndarray],
    path: Path,
    *,
    picture: Callable[[str], np.ndarray],
    segment: Callable[[int], np.ndarray],
    chance: Mapping[str, float],
    n_examples: int = 5,
) -> list[Path]:
    """Draw EEG segments, the picture each belongs to and the five pictures retrieved first, the right one framed.

    The segments are drawn at random (seed 0), one per picture, so that they are not the best ones. It is the one
    figure of a study that shows EEG as it was recorded, so it stays in the run's folder (`SHOWS_EEG`).

    Args:
        manifest: of the data set.
        predictions: what training stores with its best pass (`predictions.npz`).
        path: of the figure, without ending.
        picture: uint8 [H, W, 3] of an image id.
        segment: EEG [C, T] of a row of the segments table, in any unit.
        chance: level of guessing of `val/top1` and `val/top5`.
        n_examples: rows of the figure, at most the number of pictures.
    Returns:
        The files written.
    """
    generator = np.random.default_rng(0)
    rank_Q, image_id_Q, top_QK = predictions["rank_Q"], predictions["image_id_Q"], predictions["top_image_id_QK"]
    gallery = np.unique(image_id_Q)
    drawn = generator.permutation(gallery)[:n_examples]
    chosen = [int(generator.choice(np.flatnonzero(image_id_Q == image_id))) for image_id in drawn]
    n_columns = min(5, top_QK.shape[1])
    times_ms = 1000 * (manifest.t_min_s + np.arange(manifest.n_times) / manifest.sfreq_hz)
    names = np.array([*manifest.classes, ""])  # a label of -1 takes the last

    with style.figure(180, 16 + 24 * len(chosen)) as figure:
        grid = figure.subplots(len(chosen), 2 + n_columns, squeeze=False, width_ratios=[1.7] + [1] * (1 + n_columns))
        for (trace, shown, *found), query in zip(grid, chosen, strict=True):
            eeg_CT = segment(int(predictions["row_Q"][query]))
            trace.plot(times_ms, eeg_CT.T, color=style.BLACK, linewidth=0.25, alpha=0.35, rasterized=True)
            trace.set(yticks=[], xlim=(times_ms[0], times_ms[-1]))
            trace.spines["left"].set_visible(False)
            trace.tick_params(labelsize=6, labelbottom=trace is grid[-1, 0])
            own_id, own_name = image_id_Q[query], names[predictions["label_Q"][query]]
            _show(shown, picture(str(own_id)), own_name, is_framed=True, is_bold=False)
            shown.set_xlabel(f"retrieved {_ordinal(rank_Q[query])} of {len(gallery)}", fontsize=6, labelpad=2)
            found_names = names[predictions["top_label_QK"][query]]
            for axes, image_id, name in zip(found, top_QK[query], found_names, strict=False):
                is_right = bool(name) and name == own_name
                _show(axes, picture(str(image_id)), name, is_framed=image_id == own_id, is_bold=is_right)
        grid[-1, 0].set_xlabel("time after onset (ms)", fontsize=6)
        heads = [f"EEG, {manifest.n_chans} channels", "picture shown", *map(_ordinal, range(1, n_columns + 1))]
        for axes, head in zip(grid[0], heads, strict=True):
            where = {"xy": (0.5, 1), "xycoords": "axes fraction", "xytext": (0, 13), "textcoords": "offset points"}
            axes.annotate(head, **where, ha="center", fontsize=7.5, fontweight="bold")
        scores = [
            f"top-{k} {100 * np.mean(rank_Q <= k):.1f} % (chance {100 * chance[f'val/top{k}']:.1f} %)" for k in (1, 5)
        ]
        note = (
            "Pictures ordered by their fit to the EEG. Green: the picture shown; bold: its class. Drawn at random.\n"
            f"Over all {len(rank_Q)} validation segments of {len(gallery)} pictures: {', '.join(scores)}."
        )
        figure.supxlabel(note, fontsize=7, x=0.01, ha="left")
        rows = {"segment_row": predictions["row_Q"][chosen], "shown": image_id_Q[chosen], "rank": rank_Q[chosen]}
        return style.save(figure, path, rows | {f"retrieved_{k + 1}": top_QK[chosen, k] for k in range(n_columns)})


def _show(axes: Axes, image_HW3: np.ndarray, name: str, *, is_framed: bool, is_bold: bool) -> None:
    axes.imshow(image_HW3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(name, fontsize=6.5, fontweight="bold" if is_bold else "normal", loc="center", pad=3)
    axes.spines[:].set(visible=is_framed, color=style.GREEN, linewidth=2.5)


def _mark_passes(axes: Axes, n_passes: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("passes over the training set")
    axes.set_xlim(1 - 0.02 * n_passes, n_passes + 0.02 * n_passes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, borderaxespad=0)


def _ordinal(number: float) -> str:
    """Return 1st, 2nd, 3rd, ...; the mean rank of a tie stays a number."""
    if number != int(number):
        return f"{number:g}"
    last = int(number) % 100
    ending = "th" if 10 <= last <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(last % 10, "th")
    return f"{int(number)}{ending}"
