"""Scores side by side where they can be compared: one table for each set of circumstances, the best model first."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eegvision.config import RunConfig
from eegvision.evaluate.statistics import bootstrap_interval, significance_line
from eegvision.report.charts import Dot
from eegvision.report.grid_tables import Cell, Table
from eegvision.report.study_files import Run
from eegvision.report.tables import setting_name, short, varied
from eegvision.trials import TrialRow
from eegvision.vocab import InputError

_ORDER = ("accuracy", "top-1", "top-3", "top-5", "2-way", "10-way", "50-way", "mAP", "median rank")
MOST_TRIALS = 20
_MOST_SETTINGS = 4
_N_RESAMPLES = 2000
_NAMES = {"val/top1": "top-1", "val/top5": "top-5", "val/class_top1": "class of top-1", "val/accuracy": "accuracy"}
_GALLERIES = {
    "exact-image": "the very picture among {n}",
    "class-centre": "centres of {n} classes",
    "class-centre-without-stimulus": "centres of {n} classes, made without the side's pictures",
    "text": "text features of {n} classes",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """Scores with the same circumstances: the table, and the same models' main score as dots."""

    table: Table
    metric: str
    dots: Sequence[Dot]


def boards(found: Sequence[Run]) -> list[Board]:
    """Return a board for each set of circumstances among the evaluations, test before validation."""
    groups: dict[tuple[str, ...], list[tuple[Run, Mapping[str, Any], list[Mapping[str, Any]]]]] = {}
    for run in found:
        for evaluation in run.evaluations:
            by_key: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
            for row in evaluation["rows"]:
                if row["group_name"] == "all":
                    by_key.setdefault((title_of(evaluation, row), *circumstances(evaluation, row)), []).append(row)
            for key, rows in by_key.items():
                groups.setdefault(key, []).append((run, evaluation, rows))
    made = [_board(key, members, len(found) > 1) for key, members in groups.items()]
    return sorted(made, key=lambda board: ("(test)" not in board.table.title, board.table.title))


def _board(
    key: tuple[str, ...], members: Sequence[tuple[Run, Mapping[str, Any], list[Mapping[str, Any]]]], many: bool
) -> Board:
    metrics = {row["metric"]: row for _, _, rows in members for row in rows}
    columns = sorted(metrics, key=lambda name: (_ORDER.index(name) if name in _ORDER else 99, name))
    main = columns[0]
    entries = []
    for run, evaluation, rows in members:
        by_metric = {row["metric"]: row for row in rows}
        label = model_label(run, evaluation["trial"], RunConfig.from_dict(evaluation["config"]), many)
        value = by_metric[main]["value"] if main in by_metric else -math.inf
        entries.append((value, label, run, evaluation, by_metric))
    entries.sort(key=lambda entry: -entry[0])
    rows_of: dict[str, list[Cell]] = {}
    dots = []
    for _, label, run, evaluation, by_metric in entries:
        while label in rows_of:
            label += " (again)"
        cells = [score_cell(by_metric.get(name), run.is_struck) for name in columns]
        p = by_metric.get(main, {}).get("p")
        words = (p_text(p), evaluation.get("selection", ""), str(evaluation.get("seed", "")), _opening(evaluation))
        rows_of[label] = [*cells, *(Cell(value=None, text=text) for text in words)]
        if main in by_metric:
            dots.append(dot(label, by_metric[main], run.is_struck))
    title, *facts = key
    table = Table(
        title=title,
        caption="; ".join(facts) + ".",
        columns=(*columns, f"p of {main}", "checkpoint chosen by", "seed", "test opening"),
        rows=rows_of,
    )
    return Board(table=table, metric=main, dots=dots)


def _opening(evaluation: Mapping[str, Any]) -> str:
    opening = evaluation.get("opening")
    return f"{opening['number']} of {opening['of']}" if opening else "none"


def title_of(evaluation: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return what was asked and of which side, in a few words."""
    if evaluation["protocol"] == "probe":
        what = f"Softmax probe, {'EEG' if row.get('probe_side') == 'eeg' else row.get('probe_side')} embeddings"
    else:
        what = f"Zero-shot retrieval, gallery {row.get('gallery')}"
    tail = "" if row.get("transductive", "none") in ("none", None, False) else f", transductive ({row['transductive']})"
    return f"{what}{tail} ({evaluation['side']})"


def circumstances(evaluation: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return everything a score depends on besides the model, a few words each."""
    dataset = evaluation["dataset"]
    held_out = f", {row['held_out']} held out" if row.get("held_out") is not None else ""
    facts = [
        f"data {dataset['name']} ({dataset['fingerprint']})",
        f"{evaluation['side']} side of the split {row.get('split')}{held_out}",
    ]
    if evaluation["protocol"] == "probe":
        facts.append(f"softmax layer fitted on {row.get('probe_side')} embeddings of the training side")
    else:
        facts += [
            _GALLERIES.get(str(row.get("gallery")), "{n} items").format(n=row.get("n_gallery")),
            f"unit length: {row.get('normalise')}",
            "not transductive" if row.get("transductive", "none") == "none" else f"transductive: {row['transductive']}",
        ]
    if (repetitions := row.get("repetitions")) is not None:
        facts.append({0: "means of all presentations", 1: "single presentations"}.get(repetitions, f"means of "
                     f"{repetitions} presentations"))  # fmt: skip
    facts.append(f"{row.get('n_channels')} channels")
    for name, unit in (("window_s", "s"), ("band_hz", "Hz")):
        if row.get(name):
            facts.append(f"{row[name][0]:g} to {row[name][1]:g} {unit}")
    if row.get("control"):
        facts.append(f"control {row['control']}")
    n_images = f" of {row['n_images']} pictures" if row.get("n_images") else ""
    return [*facts, f"n = {row['n_queries']}{n_images}"]


def model_label(run: Run, trial_id: str, config: RunConfig, many: bool) -> str:
    """Return a trial's number (or its key in a grid) and its architecture, with the run's name where there are many."""
    trial = run.trial(trial_id)
    own = f"trial {trial.number}" if trial is not None and run.is_searched else trial_id
    if trial is not None and len(run.trials) == 1:
        own = run.name
    elif many:
        own = f"{run.name}, {own}"
    return f"{own}: {architecture(config)}"


def architecture(config: RunConfig) -> str:
    """Return encoders, objective and size of the embedding in a few words."""
    if config.loss.arm == "eeg":
        return f"{config.eeg.encoder} alone, D {config.eeg.embed_dim}"
    if config.loss.arm == "image":
        return f"{config.image.encoder} alone, D {config.image.embed_dim}"
    return f"{config.eeg.encoder} + {config.image.encoder}, {config.loss.name}, D {config.eeg.embed_dim}"


def score_cell(row: Mapping[str, Any] | None, is_struck: bool) -> Cell:
    """Return a row of an evaluation as a cell; a rank, which is no share, as text beside its chance level."""
    if row is None:
        return Cell(value=None)
    if row["metric"] == "median rank":
        return Cell(value=None, text=f"{row['value']:g} (chance {row['chance']:g})", is_struck=is_struck)
    return Cell(
        value=row["value"], low=row.get("low"), high=row.get("high"), chance=row.get("chance"),
        line=row.get("significance_line"), is_struck=is_struck,
    )  # fmt: skip


def dot(label: str, row: Mapping[str, Any], is_struck: bool) -> Dot:
    """Return a row of an evaluation as a dot."""
    cell = score_cell(row, is_struck)
    assert cell.value is not None
    return Dot(
        label=label, value=cell.value, low=cell.low, high=cell.high, chance=cell.chance, line=cell.line,
        is_struck=is_struck,
    )  # fmt: skip


def p_text(p: float | None) -> str:
    """Return a p-value in three digits after the point; nothing for None."""
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def validation_board(run: Run) -> Board | None:
    """Return the validation scores of a run's trials: what they were chosen on, so no evidence by themselves.

    The interval draws pictures again; the significance line is corrected for the number of trials (Bonferroni). Both
    are of one trial by itself: the best of many is flattered by the choice.
    """
    scored = [trial for trial in run.trials if trial.metrics]
    if not scored:
        return None
    names = [name for name in _NAMES if any(name in trial.metrics for trial in scored)]
    settings = dict(list(varied(scored).items())[:_MOST_SETTINGS])
    metric = scored[0].config.metric
    main = metric if metric in names else next(iter(names), None)
    rows, dots = {}, []
    for at, trial in enumerate(scored[:MOST_TRIALS]):
        interval, n_images, levels = _from_predictions(trial)
        cells = []
        for name in names:
            chance = run.chance.get(name, levels.get(name))
            line = None
            if name in ("val/top1", "val/accuracy") and chance is not None and n_images:
                line = significance_line(n_images, chance, comparisons=len(scored))
            low, high = interval if name in ("val/top1", "val/accuracy") else (None, None)
            value = trial.metrics.get(name)
            cell = Cell(value=value, low=low, high=high, chance=chance, line=line, is_struck=run.is_struck)
            cells.append(cell)
            if name == main and value is not None:
                label = f"trial {trial.number}: {architecture(trial.config)}"
                dots.append(
                    Dot(label=label, value=value, low=low, high=high, chance=chance, line=line,
                        is_struck=run.is_struck)
                )  # fmt: skip
        words = [*(short(values[at]) for values in settings.values()), f"{trial.passes}", trial.status]
        own = f"trial {trial.number}" if run.is_searched else trial.trial_id
        rows[own] = [*cells, *(Cell(value=None, text=text) for text in words)]
    left = len(scored) - len(rows)
    notes = [
        f"Chosen on: each trial is shown at its best pass, and the trials were ranked, by {metric} on these very "
        "pictures; only the test set can confirm a score.",
        f"Significance line at 0.05, divided by {len(scored)} trials.",
        *([f"{left} more trials are in the CSV file."] if left else []),
    ]
    if failed := [trial for trial in run.trials if not trial.metrics]:
        notes.append(f"Without a score: {', '.join(f'trial {t.number} ({t.status}) {t.message}' for t in failed)}")
    table = Table(
        title=f"Validation scores of {run.name}: chosen on, not evidence",
        caption=f"Data {', '.join(f'{name} ({fp})' for name, fp in run.datasets.items())}; validation side of the "
        f"split {scored[0].config.data.split}; {len(scored)} trials with a score.",
        columns=(*(_NAMES[name] for name in names), *map(setting_name, settings), "passes", "status"),
        rows=rows,
        notes=notes,
    )
    return Board(table=table, metric=_NAMES.get(main or "", metric), dots=dots)


def _from_predictions(trial: TrialRow) -> tuple[tuple[float | None, float | None], int, dict[str, float]]:
    """Return the interval of a trial's accuracy at its best pass, the number of pictures, and levels of guessing.

    Guessing k of M pictures, the class of a picture drawn at random, or always the most frequent class.
    """
    files = sorted((trial.folder / "best").glob("[!.]*/predictions.npz"))
    if not files:
        return (None, None), 0, {}
    found = _arrays(files[-1])
    is_known_Q = found["label_Q"] >= 0
    picture_M, first_M = np.unique(found["image_id_Q"], return_index=True)
    n_images, levels = len(picture_M), {}
    if "rank_Q" in found:
        hits_Q, image_Q = found["rank_Q"] <= 1, found["image_id_Q"]
        levels = {f"val/top{k}": min(1.0, k / n_images) for k in (1, 5)}
        if is_known_Q.any():
            label_M = found["label_Q"][first_M]
            n_K = np.bincount(label_M[label_M >= 0], minlength=found["label_Q"].max() + 1)
            levels["val/class_top1"] = float(n_K[found["label_Q"][is_known_Q]].mean() / n_images)
    else:
        hits_Q = (found["predicted_Q"] == found["label_Q"])[is_known_Q]
        image_Q = found["image_id_Q"][is_known_Q]
        if is_known_Q.any():
            levels["val/accuracy"] = float(np.bincount(found["label_Q"][is_known_Q]).max() / is_known_Q.sum())
    if len(np.unique(image_Q)) < 2:
        return (None, None), n_images, levels
    return bootstrap_interval(hits_Q, image_Q, n_resamples=_N_RESAMPLES, small_sample=True), n_images, levels


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            found = dict(arrays)
        if not {"image_id_Q", "label_Q"} <= found.keys() or not {"rank_Q", "predicted_Q"} & found.keys():
            raise ValueError(f"arrays {', '.join(sorted(found))}")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}); train this trial again, or remove the file") from error
    return found
