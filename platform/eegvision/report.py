"""Figures, tables and cards of runs and sweeps; the level of guessing is on every one of them.

A figure is saved four times under one name: `.svg` and `.pdf` for papers (text stays text), `.png` to look at and
`.csv` with the numbers it shows. Lengths are in millimetres of paper: one column is 85, two are 180.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eegvision.config import RunConfig
from eegvision.evaluate.statistics import binomial_p
from eegvision.ingest.shards import Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours: told apart with any colour vision.
_BLACK, _GREY, _BLUE, _SKY = "#000000", "#999999", "#0072B2", "#56B4E9"
_GREEN, _ORANGE, _RED, _PURPLE = "#009E73", "#E69F00", "#D55E00", "#CC79A7"
_STYLE = {
    "font.family": "sans-serif", "font.size": 7, "axes.titlesize": 8, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2, "legend.frameon": False,
    "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "eegvision",
}  # fmt: skip
_DPI = 200
_TABLE_COLUMNS = 120
_NAMES = {
    "val/top1": "top-1",
    "val/top5": "top-5",
    "val/class_top1": "class of top-1",
    "val/loss": "validation loss",
    "train/loss": "training loss",
}


class Trial(Protocol):
    """What a report needs of a trial; metrics are those of its best pass, item i of the history is pass i + 1."""

    @property
    def number(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def passes(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def history(self) -> Sequence[Mapping[str, float]]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def message(self) -> str: ...


def learning_curves(
    history: Sequence[Mapping[str, float]], path: Path, *, chance: Mapping[str, float], metric: str = "val/top1"
) -> list[Path]:
    """Draw loss and retrieval accuracy over the passes of one run, the best pass by `metric` marked.

    Args:
        history: metrics of each pass, from the first; accuracies as shares in [0, 1].
        path: of the figure, without ending.
        chance: level of guessing of each accuracy drawn, by name of the metric.
        metric: the one that picked the best pass.
    Returns:
        The files written.
    """
    passes = np.arange(1, len(history) + 1)
    values = {name: np.array([done[name] for done in history]) for name in _NAMES if name in history[0]}
    pick = np.argmin if metric == "val/loss" else np.argmax
    best = int(pick(values[metric]))
    with _figure(180, 70) as figure:
        left, right = figure.subplots(1, 2)
        for name, colour in (("train/loss", _GREY), ("val/loss", _BLACK)):
            left.plot(passes, values[name], color=colour, marker=".", markersize=3, label=_NAMES[name])
        left.set(ylabel="loss", title="Loss")
        shares = [("val/top5", _SKY), ("val/top1", _BLUE), ("val/class_top1", _ORANGE)]
        for place, (name, colour) in enumerate((name, colour) for name, colour in shares if name in values):
            label = f"{_NAMES[name]} (chance {100 * chance[name]:.3g} %)"
            right.plot(passes, 100 * values[name], color=colour, marker=".", markersize=3, label=label)
            # Dashes that leave room for those of the other lines: two levels can be the same.
            right.axhline(100 * chance[name], color=colour, linestyle=(3 * place, (4, 5)), linewidth=0.9, zorder=1)
        right.set(ylabel="accuracy (%), dashed: chance", title="Retrieval of the picture from EEG (validation)")
        right.set_ylim(bottom=0)
        for axes, is_shown in ((left, metric == "val/loss"), (right, metric != "val/loss")):
            _mark_passes(axes, len(history))
            axes.axvline(best + 1, color=_GREY, linewidth=0.6, zorder=0)
            if is_shown:
                height = values[metric][best] * (1 if metric == "val/loss" else 100)
                axes.plot(best + 1, height, "o", color=_RED, markersize=4, label=f"best pass ({best + 1})", zorder=5)
            _legend_below(axes)
        return _save(figure, path, {"pass": passes, **values})


def sweep_curves(
    trials: Sequence[Trial], path: Path, *, chance: Mapping[str, float], metric: str = "val/top1"
) -> list[Path]:
    """Draw `metric` of every trial over its passes: the best one bold, those stopped early pale.

    Args:
        trials: best first.
        path: of the figure, without ending.
        chance: level of guessing by metric; a metric without one (a loss) gets no line.
        metric: what the trials were ranked by.
    Returns:
        The files written.
    """
    drawn = [trial for trial in trials if trial.history]
    scale, unit = (1, "") if metric == "val/loss" else (100, " accuracy (%)")
    with _figure(120, 80) as figure:
        axes = figure.subplots()
        for trial in reversed(drawn):
            colour, width, alpha = _GREY, 0.8, 0.6
            if trial.status == "finished":
                colour, width, alpha = _BLUE, 0.9, 0.8
            elif trial.status != "stopped early":
                colour, width, alpha = _PURPLE, 0.9, 1.0
            if trial is drawn[0]:
                colour, width, alpha = _RED, 2.0, 1.0
            values = scale * np.array([done[metric] for done in trial.history])
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=width, alpha=alpha)
            mark = {"finished": ".", "stopped early": "."}.get(trial.status, "x")
            axes.plot(len(values), values[-1], mark, color=colour, alpha=alpha, markersize=4)  # where it ended
        if metric in chance:
            axes.axhline(100 * chance[metric], color=_BLACK, linestyle="--", linewidth=0.8, zorder=1)
            axes.annotate(
                f"chance {100 * chance[metric]:.3g} %", (1, 100 * chance[metric]), xytext=(2, 0), va="center",
                xycoords=("axes fraction", "data"), textcoords="offset points", annotation_clip=False,
            )  # fmt: skip
            axes.set_ylim(bottom=0)
        _mark_passes(axes, max(len(trial.history) for trial in drawn))
        axes.set(ylabel=f"{_NAMES[metric]}{unit}", title=f"{len(trials)} trials, validation")
        counts = Counter(trial.status for trial in trials)
        others = sum(count for status, count in counts.items() if status not in ("finished", "stopped early"))
        axes.plot([], [], color=_RED, linewidth=2, label=f"best (trial {drawn[0].number})")
        axes.plot([], [], color=_BLUE, marker=".", label=f"finished ({counts['finished']})")
        axes.plot([], [], color=_GREY, alpha=0.6, marker=".", label=f"stopped early ({counts['stopped early']})")
        if others:
            axes.plot([], [], color=_PURPLE, marker="x", markersize=4, label=f"failed or diverged ({others})")
        _legend_below(axes)
        points = [(t.number, t.status, i, done[metric]) for t in drawn for i, done in enumerate(t.history, start=1)]
        columns = zip(*points, strict=True)
        return _save(figure, path, dict(zip(("trial", "status", "pass", metric), columns, strict=True)))


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
    with _figure(side + 15, side) as figure:
        axes = figure.subplots()
        # From 0 to at least 50 %, so that a matrix of noise does not look like one of hits.
        top = max(50.0, float(percent_KK.max()))
        picture = axes.imshow(percent_KK, cmap="Blues", vmin=0, vmax=top)
        size = 6 if is_small else 4.5
        axes.set_xticks(range(n_classes), classes, rotation=90, fontsize=size)
        axes.set_yticks(range(n_classes), [f"{c} ({n})" for c, n in zip(classes, n_K, strict=True)], fontsize=size)
        axes.set(xlabel="class of the picture retrieved first", ylabel="class of the picture shown (segments)")
        axes.set_title(f"Right class {accuracy:.1f} %, chance {100 * chance:.1f} % (n = {count_KK.sum()} segments)")
        axes.spines[["top", "right"]].set_visible(True)
        if is_small:
            for row, column in np.argwhere(count_KK):
                colour = "white" if percent_KK[row, column] > 0.6 * top else _BLACK
                text = f"{percent_KK[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
        bar = figure.colorbar(picture, ax=axes, shrink=0.6, label="share of the row (%)")
        bar.ax.axhline(100 * chance, color=_RED, linestyle="--", linewidth=1)
        bar.ax.text(-0.2, 100 * chance, "chance", color=_RED, ha="right", va="center", fontsize=6)
        table = {"shown": list(classes), **{f"retrieved {c}": count_KK[:, k] for k, c in enumerate(classes)}}
        return _save(figure, path, table)


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

    The segments are drawn at random (seed 0), one per picture, so that they are not the best ones.

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

    with _figure(180, 16 + 24 * len(chosen)) as figure:
        grid = figure.subplots(len(chosen), 2 + n_columns, squeeze=False, width_ratios=[1.7] + [1] * (1 + n_columns))
        for (trace, shown, *found), query in zip(grid, chosen, strict=True):
            eeg_CT = segment(int(predictions["row_Q"][query]))
            trace.plot(times_ms, eeg_CT.T, color=_BLACK, linewidth=0.25, alpha=0.35, rasterized=True)
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
        return _save(figure, path, rows | {f"retrieved_{k + 1}": top_QK[chosen, k] for k in range(n_columns)})


def sweep_table(
    trials: Sequence[Trial], *, metric: str, chance: Mapping[str, float], n_segments: int, n_images: int
) -> str:
    """Return the ranked trials as text of at most 120 columns, with the level of guessing in the last row.

        p = P(X >= floor(a n)), X ~ Binomial(n, chance)        a = top-1 accuracy, n = number of validation pictures

    Segments of one picture count as one observation here, so p errs on the safe side. It holds for a trial by
    itself; the best of many is flattered by the choice, and the text says so.

    Args:
        trials: best first.
        metric: what they were ranked by.
        chance: level of guessing by metric.
        n_segments: validation segments.
        n_images: validation pictures (the gallery).
    """
    scored = [trial for trial in trials if trial.metrics]
    columns = [
        ["rank", *[str(rank) for rank in range(1, len(scored) + 1)], *["-"] * (len(trials) - len(scored)), ""],
        ["trial", *[str(trial.number) for trial in trials], ""],
        ["status", *[trial.status for trial in trials], "chance"],
        ["passes", *[str(trial.passes) for trial in trials], ""],
    ]
    for name, head in (("val/top1", "top-1 %"), ("val/top5", "top-5 %"), ("val/class_top1", "class %")):
        if any(name in trial.metrics for trial in trials):
            cells = [f"{100 * trial.metrics[name]:.1f}" if name in trial.metrics else "-" for trial in trials]
            columns.append([head, *cells, f"{100 * chance[name]:.1f}"])
        if name == "val/top1":
            columns.append(["p", *[_p_text(trial.metrics, n_images, chance[name]) for trial in trials], ""])
    if metric == "val/loss":
        columns.append(["loss", *[f"{t.metrics[metric]:.3f}" if t.metrics else "-" for t in trials], ""])
    columns.append(["time", *[_clock(trial.seconds) for trial in trials], ""])
    left_out = []
    for head, cells in _varying(trials).items():
        fits = sum(_width(column) + 2 for column in columns) + _width([head, *cells]) <= _TABLE_COLUMNS
        columns.append([head, *cells, ""]) if fits and not left_out else left_out.append(head)
    notes = [
        f"{n_segments} validation segments of {n_images} pictures; best first by {metric}, each trial at its best pass",
        f"p: this many hits by guessing among {n_images} pictures, for one trial by itself; the first of {len(trials)} "
        "was chosen on these very pictures, so only the test set can confirm it",
        *[f"trial {trial.number} {trial.status}: {trial.message}" for trial in trials if trial.message],
    ]
    if left_out:
        notes.append(f"also varied: {', '.join(left_out)}")
    wrapped = [textwrap.fill(note, _TABLE_COLUMNS, subsequent_indent="  ") for note in notes]
    return "\n".join([*_aligned(columns), *wrapped])


def write_csv(trials: Sequence[Trial], path: Path, *, chance: Mapping[str, float]) -> None:
    """Write one row per trial, best first: outcome, all metrics with their level of guessing, all settings."""
    import pandas as pd

    rows = [
        {"rank": rank, "trial": trial.number, "status": trial.status, "passes": trial.passes, "seconds": trial.seconds}
        | dict(trial.metrics)
        | {f"chance {name}": level for name, level in chance.items()}
        | trial.config.flat()
        | {"message": trial.message}
        for rank, trial in enumerate(trials, start=1)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def dataset_card(manifest: Manifest, *, segments_in: Mapping[str, int] | None = None, notes: Sequence[str] = ()) -> str:
    """Return what a reader must know of a data set before believing a score, as Markdown.

    Subjects and anything else that lists them are counted, not named: cards travel further than the data.

    Args:
        manifest: of the data set.
        segments_in: number of segments by split name, when it was split.
        notes: leaks the split cannot exclude, one sentence each.
    """
    channels = manifest.channels
    facts = {
        "made from": manifest.dialect,
        "licence": manifest.licence,
        "fingerprint": f"`{manifest.fingerprint}`",
        "segments": f"{manifest.n_segments}",
        "pictures": f"{manifest.n_images} in {len(manifest.classes)} classes",
        "subjects": f"{len(manifest.subjects)}",
        "channels": f"{len(channels)} ({', '.join(channels[:6])}{', ...' if len(channels) > 6 else ''})",
        "sampling rate": f"{manifest.sfreq_hz:g} Hz",
        "window": f"{1000 * manifest.t_min_s:g} to {1000 * (manifest.t_min_s + manifest.n_times / manifest.sfreq_hz):g}"
        f" ms after onset ({manifest.n_times} samples)",
        "unit": manifest.unit,
        "shards": f"{len(manifest.shards)}",
    }
    lines = [
        f"# Data set {manifest.name}",
        "",
        "| | |",
        "|---|---|",
        *[f"| {k} | {_cell(v)} |" for k, v in facts.items()],
    ]
    lines += ["", "## Steps so far", ""]
    lines += [f"{number}. {_step(step)}" for number, step in enumerate(manifest.steps, start=1)] or ["None recorded."]
    lines += ["", "## Left out", ""]
    lines += [f"- {reason}: {count}" for reason, count in sorted(manifest.dropped.items()) if count] or ["Nothing."]
    if segments_in:
        lines += ["", "## Split", "", "| part | segments |", "|---|---|"]
        lines += [f"| {name} | {count} |" for name, count in segments_in.items()]
    if notes:
        lines += ["", "What the split cannot exclude:", "", *[f"- {note}" for note in notes]]
    lines += ["", "## Classes", "", ", ".join(map(str, manifest.classes)) or "None."]
    return "\n".join(lines) + "\n"


@contextmanager
def _figure(width_mm: float, height_mm: float) -> Iterator[Figure]:
    """Yield an empty figure in our style; made without pyplot, so that no state outlives it and threads may draw."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")


def _save(figure: Figure, path: Path, numbers: Mapping[str, Any]) -> list[Path]:
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    # No date inside, so that the same numbers give the same file.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    written = [path.with_name(f"{path.name}.{ending}") for ending in (*dates, "csv")]
    for file, metadata in zip(written[:-1], dates.values(), strict=True):
        figure.savefig(file, dpi=_DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.03)
    pd.DataFrame(dict(numbers)).to_csv(written[-1], index=False)
    return written


def _show(axes: Axes, image_HW3: np.ndarray, name: str, *, is_framed: bool, is_bold: bool) -> None:
    axes.imshow(image_HW3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(name, fontsize=6.5, fontweight="bold" if is_bold else "normal", loc="center", pad=3)
    axes.spines[:].set(visible=is_framed, color=_GREEN, linewidth=2.5)


def _mark_passes(axes: Axes, n_passes: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("passes over the training set")
    axes.set_xlim(1 - 0.02 * n_passes, n_passes + 0.02 * n_passes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, borderaxespad=0)


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table whose columns are given; words to the left, numbers to the right."""
    texts = []
    for column in columns:
        is_number = all(cell[:1] in "0123456789-<" for cell in column[1:] if cell)
        align = str.rjust if is_number else str.ljust
        texts.append([align(cell, _width(column)) for cell in column])
    rows = ["  ".join(row).rstrip() for row in zip(*texts, strict=True)]
    return [rows[0], "-" * max(map(len, rows)), *rows[1:]]


def _varying(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Return the settings that differ between trials as {heading: a value per trial}, the main ones first."""
    flat = [trial.config.flat() for trial in trials]
    # What was set apart, not what follows from it: a loss brings its own temperature.
    given = [
        {
            f"{group}.{name}": value
            for group, own in trial.config.to_dict().items()
            if group != "seed"
            for name, value in own.items()
        }
        | {"seed": trial.config.seed}
        for trial in trials
    ]
    main = ["eeg.encoder", "image.encoder", "eeg.embed_dim", "loss.name", "optim.lr"]
    paths = [*main, *[path for path in dict.fromkeys(path for own in flat for path in own) if path not in main]]
    found: dict[str, list[str]] = {}
    for path in paths:
        values = [_short(own.get(path)) for own in flat]
        if (
            len({str(own[path]) for own in given}) > 1 and values not in found.values()
        ):  # both embed_dim are always the same
            group, _, name = path.rpartition(".")
            head = group if name in ("encoder", "name") else name.replace("embed_dim", "dim")
            found[path if head in found else head] = values
    return found


def _short(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.2g}"
            if abs(value) >= 0.01 or not value
            else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
        )
    return str(value)


def _p_text(metrics: Mapping[str, float], n_images: int, chance: float) -> str:
    if not metrics:
        return "-"
    # A share of 3/40 times 40 can come out just below 3.
    p = binomial_p(math.floor(metrics["val/top1"] * n_images + 1e-9), n_images, chance)
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _width(column: Sequence[str]) -> int:
    return max(map(len, column))


def _ordinal(number: float) -> str:
    """Return 1st, 2nd, 3rd, ...; the mean rank of a tie stays a number."""
    if number != int(number):
        return f"{number:g}"
    last = int(number) % 100
    ending = "th" if 10 <= last <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(last % 10, "th")
    return f"{int(number)}{ending}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _step(step: Mapping[str, Any]) -> str:
    """Return one preparation step in a line; lists (of subjects, of names) are counted."""
    name, *rest = step.items()
    texts = [f"{key} {f'({len(value)})' if isinstance(value, list | tuple) else value}" for key, value in rest]
    return f"{name[1]}{': ' if texts else ''}{', '.join(texts)}"
