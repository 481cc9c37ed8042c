"""A study from data set to results: checks, the sweep, and what is left behind to look at."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from eegvision import (
    checkpoint,
    cluster,
    distributed,
    features,
    history,
    intake,
    preflight,
    pseudonyms,
    runs,
    stream,
    sweep,
    telemetry,
    trials,
)
from eegvision.assess import record
from eegvision.assess.scores import Question
from eegvision.config import Arm, RunConfig, SweepConfig
from eegvision.evaluate.nulls import answer_permutation
from eegvision.evaluate.statistics import significance_line
from eegvision.history import History
from eegvision.ingest import pictures, shards, simulate
from eegvision.ingest.places import place
from eegvision.ingest.shards import Manifest
from eegvision.overrides import flatten
from eegvision.report import figures, tables
from eegvision.report.scores import scores_table
from eegvision.space import Space, check_space
from eegvision.stream import Store
from eegvision.tracking import Tracker, code_version, environment, ship_rest, tracking_uri, without_password
from eegvision.trials import TrialRow
from eegvision.vocab import SplitName

Say = Callable[[str], None]

DEMO = "demo"

# Differences in these do not make it another sweep: they say how fast and how safely it runs, not what it finds.
# With several workers a trial runs in other processes than alone, so their number stays.
_FREE_TO_CHANGE = {
    "max_concurrent", "cpus_per_trial", "gpus_per_trial", "memory_gb_per_trial", "together", "max_failures",
    "stall_minutes", "allow_drift",
}  # fmt: skip


def ensure_demo(dataset: str, say: Say) -> None:
    """Simulate the demo data set if it is asked for and absent."""
    root = runs.named_folder("datasets", DEMO)
    if dataset == DEMO and not (root / shards.MANIFEST_NAME).exists():
        say(f"simulating the data set {DEMO!r} in {root} ...")
        intake.ingest(simulate.simulate(simulate.PRESETS[DEMO], name=DEMO), place(root), say=say)


def run_study(base: RunConfig, settings: SweepConfig, *, name: str, space: Space | None, say: Say) -> list[TrialRow]:
    """Run, resume or show the sweep `name`, and return its trials, best first.

    Leaves in the run's folder: the trials' checkpoints, `table.txt`, `trials.csv`, figures and the data set's card;
    the same and every metric go to MLflow. A finished sweep is only shown (and returned as no trials).

    Raises:
        InputError: data, space or settings cannot be used. Checked before anything is started.
        RunInUseError: the name belongs to another sweep, or another process is running this one.
    """
    root = shards.dataset_root(base.data.dataset)
    manifest = shards.read_manifest(root)
    tried = [base] if space is None else check_space(space, base)
    shards.verify(root, manifest)
    folder = runs.named_folder("runs", name)
    identity = _identity(base, settings, space, manifest)
    with runs.sole_owner(folder) as owner:
        runs.check_claim(folder, identity)
        if (folder / "table.txt").exists():
            say(f"{name!r} is finished; to run it anew give it another --name, or remove {folder}\n")
            say((folder / "table.txt").read_text())
            if shipped := ship_rest(folder / "spool", name):
                say(shipped)
            _say_where(folder, say)
            return []
        made_with = preflight.versions() | {"optuna": importlib.metadata.version("optuna")}
        drift = runs.check_drift(folder, made_with, allow=settings.allow_drift)
        say(f"{name}: {f'{settings.trials} trials of {space.path.name}' if space else 'one configuration'}")
        say(f"data set {manifest.name}: {_describe(manifest)}")
        placement, store, chance = _prepare(base, settings, manifest, tried, say)
        runs.claim(folder, identity)
        runs.note_made_with(folder, made_with)
        with Tracker(folder / "spool", experiment=name) as tracker:
            gauges = telemetry.Gauges(name, backlog=lambda: tracker.pending)
            for event in history.read(folder):
                gauges.see(event)
            with History(folder, see=gauges.see) as log, _logged(log, identity, base, settings, placement, owner):
                if drift:
                    log.write("drift", differences=drift)
                kind = "sweep" if space else "train"
                tracker.start(name, name=name, params=identity, tags=_tags(base, manifest, kind))
                watching = sweep.Watching(
                    base=base, sweep=settings, folder=folder, tracker=tracker, log=log,
                    chance=chance.get(base.metric), say=say,
                )  # fmt: skip
                rows = sweep.run_sweep(base, settings, space, watching)
                table = _publish(rows, base, store, chance, folder, tracker)
                tracker.finish(name, "FINISHED")
                say(f"\n{table}")
                _finish(folder, rows, table, log)
        for line in [*history.slow_hosts(folder), *(f"warning: {problem}" for problem in history.check(folder))]:
            say(line)
        _say_where(folder, say)
    return rows


def _prepare(
    base: RunConfig, settings: SweepConfig, manifest: Manifest, tried: list[RunConfig], say: Say
) -> tuple[distributed.Placement, Store, dict[str, float]]:
    """Join a cluster and load the data; refuse, and say, what is to be known of them before anything is written."""
    cluster.enter(say)
    placement = sweep.placement_of(settings)  # refuses what the cluster will never have
    features.warm(tried, say=say)  # layers no draw came upon are made by the first trial that asks for them
    store = stream.load_store(base.data, distributed.picture_px(base))
    distributed.batches(base, store, world=settings.workers_per_trial)  # refuses what does not fit the data
    chance = chance_levels(store, base.loss.arm)
    if (store.manifest.n_chans, store.manifest.n_times) != (manifest.n_chans, manifest.n_times):
        say(f"of these, {store.manifest.n_chans} channels x {store.manifest.n_times} samples are read")
    say(_describe_split(store, base, chance))
    for note in store.split.notes:
        say(f"note: {note}")
    return placement, store, chance


@contextmanager
def _logged(
    log: History,
    identity: dict[str, Any],
    base: RunConfig,
    settings: SweepConfig,
    placement: distributed.Placement,
    owner: int,
) -> Iterator[None]:
    """Log that a driver begins or goes on, and why it stopped before the end, if it does."""
    log.write(
        "begin" if log.is_new else "resume",
        identity=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        code=code_version(),
        host=os.uname().nodename,
        pid=os.getpid(),
        owner=owner,
        metric=base.metric,
        mode=base.mode,
        trials=settings.trials,
        gpus=placement.gpus,
    )
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the disk may be what stopped it
            log.write("interrupted", reason=f"{type(error).__name__}: {error}"[:300])
        raise


def _finish(folder: Path, rows: list[TrialRow], table: str, log: History) -> None:
    """Mark the sweep as finished, and log what it found and left behind."""
    best, metric = rows[0], rows[0].config.metric
    runs.write_whole(folder / "best.json", json.dumps({"trial": best.trial_id, "number": best.number}))
    runs.write_whole(folder / "table.txt", table)  # from here on it is finished
    log.write("best", id=best.trial_id, number=best.number, metric=metric, value=best.metrics[metric])
    for path in sorted([*folder.glob("*.*"), *(folder / "figures").iterdir()]):
        if path.suffix in (".md", ".json", ".csv", ".txt", ".png", ".pdf", ".svg"):
            content = path.read_bytes()
            log.write(
                "artifact",
                path=str(path.relative_to(folder)),
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
            )
    log.write("finished", reason="")


def check_run(name: str, say: Say) -> int:
    """Hold what a sweep has left against its log, say what is wrong, and return 1 if anything is, else 0."""
    folder = runs.named_folder("runs", name)
    for problem in (problems := history.check(folder)):
        say(f"{name}: {problem}")
    if not problems:
        say(f"{name}: {len(history.read(folder))} lines of {folder / history.NAME}, nothing wrong")
    return int(bool(problems))


def evaluate_run(
    name: str, question: Question, *, trial: int | None, side: SplitName, again: str | None, say: Say
) -> dict[str, Any]:
    """Score a trial of the run `name` (the best one, if no number is given), log and show the scores.

    Raises:
        InputError: there is no such run or trial, the question does not fit, or the test set was opened before for
            other models of this run and `again` does not say why.
    """
    folder = runs.named_folder("runs", name)
    own = trials.find_trial(folder, trial)
    number = trials.number_of(own)
    purpose = "score of the trial that was best on validation" if trial is None else f"score of trial {number}"
    say(f"{name}, trial {number}: {question.protocol} on the {side} side")
    found = record.score_trials(folder, [own], question, side=side, purpose=purpose, again=again, say=say)[0]
    path = folder / "evaluations" / Path(found["predictions"]).with_suffix(".json")
    key = f"{name}/evaluations/{path.stem}"
    with Tracker(folder / "spool", experiment=name) as tracker:
        tags = {
            "eegvision.kind": "evaluate",
            "eegvision.model": f"{name}/{own.name}",
            "eegvision.config": found["fingerprint"],
            "eegvision.dataset": found["dataset"]["fingerprint"],
            "eegvision.selection": found["selection"],
            "eegvision.side": side,
        }
        params = {**found["question"], "run": name, "trial": number, "opening": (found["opening"] or {}).get("line")}
        tracker.start(key, name=f"evaluate {number:03d} {question.protocol} {side}", tags=tags, params=params)
        overall = [row for row in found["rows"] if row["group_name"] == "all"]
        for row in overall:
            kind = row["probe_side"] or row["gallery"]
            tracker.metrics(key, {f"{side}/{kind}/{row['metric'].replace(' ', '_')}": row["value"]}, step=0)
        for file in (path, path.with_suffix(".parquet")):
            tracker.artifact(key, file)
        tracker.finish(key, "FINISHED")
    say(f"\n{scores_table(found).to_text()}")
    say(f"scores              {path}\npredictions         {path.with_suffix('.parquet')}")
    return found


def chance_levels(store: Store, arm: Arm = "joint") -> dict[str, float]:
    """Return what guessing scores on the validation side: k of M pictures, and the share of the right class.

    top-k: k / M        class: mean over segments of (pictures of the segment's class) / M
    accuracy of a classifier (one encoder alone): the share of the largest class, of segments or of pictures
    """
    rows = store.split.rows["val"]
    gallery_M = np.unique(store.image_N[rows])
    label_Q = store.label_N[rows]
    if arm != "joint":
        label_N = label_Q if arm == "eeg" else store.label_M[gallery_M]
        count_K = np.bincount(label_N[label_N >= 0])
        return {"val/accuracy": float(count_K.max() / count_K.sum())} if count_K.size else {}
    levels = {f"val/top{k}": min(1.0, k / len(gallery_M)) for k in (1, 5)}
    if (label_Q >= 0).any():
        per_class = np.bincount(store.label_M[gallery_M][store.label_M[gallery_M] >= 0], minlength=label_Q.max() + 1)
        levels["val/class_top1"] = float(per_class[label_Q[label_Q >= 0]].mean() / len(gallery_M))
    return levels


def _identity(base: RunConfig, settings: SweepConfig, space: Space | None, manifest: Manifest) -> dict[str, Any]:
    """Say what a sweep is, so that another one under the same name is noticed, with the differences by name."""
    search = {name: value for name, value in vars(settings).items() if name not in _FREE_TO_CHANGE}
    return {
        **{path: value for path, value in flatten(base.to_dict()).items() if path != "data.residency"},
        **search,
        "space": space.path.name if space else None,
        "space.sha256": space.sha256[:12] if space else None,
        "dataset.fingerprint": manifest.fingerprint,
    }


def _describe(manifest: Manifest) -> str:
    return (
        f"{manifest.n_segments} segments ({manifest.n_chans} channels x {manifest.n_times} samples, "
        f"{manifest.sfreq_hz:g} Hz), {len(manifest.subjects)} subjects, {manifest.n_images} pictures of "
        f"{len(manifest.classes)} classes"
    )


def _describe_split(store: Store, base: RunConfig, chance: dict[str, float]) -> str:
    def samples(rows: np.ndarray) -> str:
        n_segments = int(store.repeats.count_N[rows].sum())
        return f"{len(rows)} segments" if n_segments == len(rows) else f"{len(rows)} means of {n_segments} segments"

    counts = ", ".join(
        f"{side} {samples(rows)} of {len(np.unique(store.image_N[rows]))} pictures"
        for side, rows in store.split.rows.items()
    )
    guessing = f"; chance for {base.metric} {chance[base.metric]:.3f}" if base.metric in chance else ""
    return f"split {base.data.split}: {counts} (not opened){guessing}"


def _tags(base: RunConfig, manifest: Manifest, kind: str) -> dict[str, str]:
    return {
        "eegvision.kind": kind,
        "eegvision.dataset": manifest.fingerprint,
        "eegvision.config": base.fingerprint(),
        "eegvision.code": code_version(),
        "eegvision.selection": f"best pass by {base.metric}",
        "eegvision.split": base.data.split,
    }


def _publish(
    rows: list[TrialRow], base: RunConfig, store: Store, chance: dict[str, float], folder: Path, tracker: Tracker
) -> str:
    """Leave table, figures and cards in the run's folder, attach them to the tracked runs and return the table."""
    name, metric, best = folder.name, base.metric, rows[0]
    for row in rows:
        tracker.metrics(_key(folder, row), trials.best_metrics(row.metrics), step=row.best_pass)
    # A figure takes a second; the learning curves of every trial are in MLflow anyway.
    n_images = len(np.unique(store.image_N[store.split.rows["val"]]))
    line = {name: significance_line(n_images, level, comparisons=len(rows)) for name, level in chance.items()}
    _draw_trial(best, store, chance, line, metric)
    tracker.artifact(_key(folder, best), best.folder / "figures", "figures")
    if not (pseudonyms.has_names(best.config.to_dict()) or best.config.eeg.subjects):  # it names the subjects
        tracker.artifact(_key(folder, best), _newest(best.folder / "best"), "checkpoint")

    figures.sweep_curves(rows, folder / "figures" / "sweep", chance=chance, line=line, metric=metric)
    if base.loss.arm == "joint":
        figures.retrieval_examples(
            store.manifest,
            _predictions(best),
            folder / "figures" / "examples",
            picture=_picture_reader(base),
            segment=store.read,
            chance=chance,
        )
    segments_in: dict[str, int] = {side: len(rows_N) for side, rows_N in store.split.rows.items()}
    card = tables.dataset_card(store.manifest, segments_in=segments_in, notes=store.split.notes)
    (folder / "dataset.md").write_text(card)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2))
    tables.write_csv(rows, folder / "trials.csv", chance=chance)
    table = tables.sweep_table(
        rows,
        metric=metric,
        chance=chance,
        n_segments=segments_in["val"],
        n_images=n_images,
        p=_p_of_sweep(rows),
    )
    table += "".join(f"\nnote: {note}" for note in _notes(folder, rows))
    for file in ("dataset.md", "environment.json", "trials.csv"):
        tracker.artifact(name, folder / file)
    for file in sorted((folder / "figures").iterdir()):
        if file.stem != figures.SHOWS_EEG:
            tracker.artifact(name, file, "figures")
    tracker.artifact(name, best.folder / "figures", "best trial")
    tracker.note(name, f"```\n{table}\n```")
    tracker.metrics(name, trials.best_metrics(best.metrics), step=0)
    return table


def _notes(folder: Path, rows: list[TrialRow]) -> list[str]:
    """Say what a reader of the table must know of how it came about."""
    drifts = [line for event in history.read(folder) if event["do"] == "drift" for line in event["differences"]]
    notes = [f"--allow-drift: went on although {line}" for line in dict.fromkeys(drifts)]
    if again := [f"{row.number} ({row.attempts})" for row in rows if row.attempts > 1]:
        notes.append(f"trials that took several attempts, each going on from a checkpoint: {', '.join(again)}")
    return notes


def _p_of_sweep(rows: list[TrialRow]) -> dict[int, float]:
    """Return each trial's p-value on validation by its number, corrected for having tried them all."""
    scored = [row for row in rows if row.metrics]
    first, is_joint = _predictions(scored[0]), scored[0].config.loss.arm == "joint"
    image_id_N, at_N, image_Q = np.unique(first["image_id_Q"], return_index=True, return_inverse=True)
    key_N = np.arange(len(image_id_N)) if is_joint else first["label_Q"][at_N]
    answer_MQ = np.empty((len(scored), len(image_Q)), dtype=np.int64)
    for answer_Q, row in zip(answer_MQ, scored, strict=True):
        found = _predictions(row)  # one at a time: they name ten pictures for every segment
        if not np.array_equal(first["row_Q"], found["row_Q"]):
            return {}  # other validation pictures in some trials: there is no common null
        answer_Q[:] = _places(found["top_image_id_QK"][:, 0], image_id_N) if is_joint else found["predicted_Q"]
    p_M = answer_permutation(answer_MQ, image_Q, key_N, n_permutations=2000).step_down_M
    return {row.number: float(p) for row, p in zip(scored, p_M, strict=True)}


def _places(name_Q: np.ndarray, name_N: np.ndarray) -> np.ndarray:
    """Return where each name lies among the sorted ones, -1 for one that does not."""
    at_Q = np.searchsorted(name_N, name_Q).clip(max=len(name_N) - 1)
    return np.where(name_N[at_Q] == name_Q, at_Q, -1)


def _draw_trial(row: TrialRow, store: Store, chance: dict[str, float], line: dict[str, float], metric: str) -> None:
    drawings, predictions = row.folder / "figures", _predictions(row)
    figures.learning_curves(row.history, drawings / "learning", chance=chance, line=line, metric=metric)
    name = "val/class_top1" if row.config.loss.arm == "joint" else "val/accuracy"
    if name in chance:
        said_Q = predictions["top_label_QK"][:, 0] if name == "val/class_top1" else predictions["predicted_Q"]
        classes, level = store.manifest.classes, chance[name]
        figures.confusion(predictions["label_Q"], said_Q, classes, drawings / "confusion", chance=level)


def _key(folder: Path, row: TrialRow) -> str:
    return f"{folder.name}/{row.trial_id}"


def _newest(root: Path) -> Path:
    path = checkpoint.latest(root)
    assert path is not None, f"{root} holds no checkpoint of a trial that has metrics"
    return path


def _predictions(row: TrialRow) -> dict[str, np.ndarray]:
    """Return what a trial answered at its best pass; the archive has sums of its own, so the model stays unread."""
    for path in reversed(checkpoint.by_age(row.folder / "best")):
        with suppress(OSError, ValueError, zipfile.BadZipFile):
            return dict(np.load(io.BytesIO((path / "predictions.npz").read_bytes())))
    raise AssertionError(f"{row.folder / 'best'} holds no predictions of a trial that has metrics")


def _picture_reader(base: RunConfig) -> Callable[[str], np.ndarray]:
    root = shards.dataset_root(base.data.dataset)
    images = shards.read_images(root, shards.read_manifest(root), columns=["image_id", "encoded"])
    encoded = dict(zip(images["image_id"].to_pylist(), images["encoded"], strict=True))
    return lambda image_id: pictures.decode(encoded[image_id].as_py(), image_id)


def _say_where(folder: Path, say: Say) -> None:
    best = folder / "trials" / json.loads((folder / "best.json").read_text())["trial"]
    say(f"\nfigures and tables  {folder}")
    say(f"best model          {checkpoint.latest(best / 'best')}")
    uri = tracking_uri()
    say(f"MLflow              {'make ui' if uri.startswith('sqlite') else without_password(uri)}")
