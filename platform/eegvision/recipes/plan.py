"""What recipes share: train a list of configurations, score all of them at once, pool the scores over seeds.

Axes: S seeds, U units (pictures), Q queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from eegvision import cluster, grid, runs, trials
from eegvision.assess import record
from eegvision.assess.scores import Question
from eegvision.config import EegConfig, ImageConfig, LossConfig, RunConfig
from eegvision.evaluate.comparisons import seed_components, sign_flip
from eegvision.evaluate.statistics import bootstrap_interval, significance_line, twoway_interval
from eegvision.ingest import shards
from eegvision.report.grid_tables import Cell as Score
from eegvision.report.grid_tables import Table
from eegvision.tracking import Tracker, code_version
from eegvision.trials import TrialRow
from eegvision.vocab import InputError

Say = Callable[[str], None]

_MIN_SUBJECTS = 5


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One training and its scores: where they lie and what they say."""

    row: TrialRow
    record: dict[str, Any]
    predictions: Path


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Which of a model's scores is meant: a probe's accuracy on one side, or retrieval within the first k."""

    probe_side: str | None = None
    gallery: str = "exact-image"
    k: int = 1

    def row_of(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of an evaluation over all queries."""
        metric = "accuracy" if self.probe_side else f"top-{self.k}"
        for row in found["rows"]:
            is_meant = row["metric"] == metric and row["group_name"] == "all"
            if is_meant and (
                row["probe_side"] == self.probe_side if self.probe_side else row["gallery"] == self.gallery
            ):
                return row
        raise InputError(f"trial {found['trial']} of {found['run']!r} has no score {metric} of {self}")


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Hits (0 or 1) of one model's queries, the picture each shows and whose query it is."""

    value_Q: np.ndarray
    unit_Q: np.ndarray
    subject_Q: np.ndarray


def run_plan(
    name: str,
    configs: Mapping[str, RunConfig],
    question: Question,
    *,
    title: str,
    say: Say,
    cpus: float = 1.0,
    gpus: float | None = None,
    again: str | None = None,
) -> dict[str, Scored]:
    """Train every configuration, then open the test set once for all of them; what is done is not done again.

    Raises:
        InputError: the data set is missing, a configuration does not fit it, or trainings did not finish.
        RunInUseError: the name belongs to another study.
    """
    first = next(iter(configs.values()))
    manifest = shards.read_manifest(shards.dataset_root(first.data.dataset))
    folder = runs.named_folder("runs", name)
    identity = {"recipe": title, "dataset": manifest.name, "dataset.fingerprint": manifest.fingerprint}
    with runs.sole_owner(folder):
        runs.claim(folder, identity)
        runs.note_command(folder)
        cluster.enter(say)
        tags = {"eegvision.kind": "tables", "eegvision.dataset": manifest.fingerprint, "eegvision.code": code_version()}
        with Tracker(folder / "spool", experiment=name) as tracker:
            tracker.start(name, name=name, params=identity, tags=tags)
            say(f"{name}: {title}, {len(configs)} trainings on {manifest.name!r} (order audit: {manifest.grade})")
            cells = [grid.Cell(key=key, config=config) for key, config in configs.items()]
            rows = grid.fit_all(cells, folder, say=say, cpus=cpus, gpus=gpus, tracker=tracker)
            if failed := grid.failures(rows):
                raise InputError(
                    f"{len(failed)} of {len(rows)} trainings did not finish, so the tables would have holes: "
                    f"{'; '.join(failed[:3])}. What is finished is kept; mend the settings and repeat the command"
                )
            records = record.score_trials(
                folder,
                [row.folder for row in rows.values()],
                question,
                side="test",
                purpose=f"{title}: all of {len(configs)} configurations that were named before, none chosen by it",
                again=again,
                say=say,
            )
            tracker.finish(name, "FINISHED")
    return {
        key: Scored(row=row, record=found, predictions=folder / "evaluations" / found["predictions"])
        for (key, row), found in zip(rows.items(), records, strict=True)
    }


def publish(name: str, tables: Sequence[Table], say: Say) -> None:
    """Leave tables in the run's folder as JSON, text, CSV and LaTeX, attach them to MLflow and print them."""
    folder = runs.named_folder("runs", name)
    kept = {table.title: table.to_dict() for table in tables}
    if (path := folder / "tables.json").exists():  # those of other parts of the recipe stay
        kept = {table["title"]: table for table in json.loads(path.read_text())["tables"]} | kept
    everything = [Table.from_dict(kept[title]) for title in sorted(kept)]
    runs.write_whole(path, json.dumps({"tables": [table.to_dict() for table in everything]}, indent=1))
    for ending, written in (
        ("txt", "\n".join(table.to_text() for table in everything)),
        ("csv", "\n".join(table.to_csv() for table in everything)),
        ("tex", "\n".join(table.to_latex() for table in everything)),
    ):
        runs.write_whole(folder / f"tables.{ending}", written)
    with Tracker(folder / "spool", experiment=name) as tracker:
        tracker.start(name, name=name)
        for ending in ("txt", "csv", "tex", "json"):
            tracker.artifact(name, folder / f"tables.{ending}", "tables")
        tracker.finish(name, "FINISHED")
    for table in tables:
        say("\n" + table.to_text())
    say(f"tables              {folder}/tables.txt, .csv, .tex")
    say(f"a page of it all    python jobs/report.py --experiment {name} --out {name}.html")


def arm(base: RunConfig, which: str) -> RunConfig:
    """Return the same training for one encoder alone, as a classifier: same data, optimiser and budget."""
    train = replace(base.train, metric=None)
    loss = LossConfig(name="eeg-classes" if which == "eeg" else "image-classes")
    if which == "eeg":
        return replace(base, image=ImageConfig(), loss=loss, train=train, data=replace(base.data, crops=None))
    return replace(base, eeg=EegConfig(), loss=loss, train=train)


def seeded(key: str, config: RunConfig, n_seeds: int) -> dict[str, RunConfig]:
    """Return a configuration once for each seed, from the configuration's own on."""
    return {f"{key}-s{seed}": replace(config, seed=seed) for seed in range(config.seed, config.seed + n_seeds)}


def of_key(scored: Mapping[str, Scored], key: str) -> list[Scored]:
    """Return the seeds of a configuration."""
    return [one for name, one in scored.items() if name.rpartition("-s")[0] == key]


def hits_of(one: Scored, measure: Measure) -> Hits:
    """Read from the predictions which queries were answered rightly."""
    table = pq.read_table(one.predictions)
    if measure.probe_side:
        own = np.array(table["probe_side"].to_pylist()) == measure.probe_side
        value_Q = np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist())
    else:
        own = np.array(table["gallery"].to_pylist()) == measure.gallery
        value_Q = table["rank"].to_numpy() <= measure.k
    unit_Q, subject_Q = (np.array(table[name].to_pylist())[own] for name in ("image_id", "subject"))
    return Hits(value_Q=value_Q[own].astype(np.float64), unit_Q=unit_Q, subject_Q=subject_Q)


def score(seeds: Sequence[Scored], measure: Measure, *, published: float | None = None) -> Score:
    """Return the mean over seeds with an interval that takes seeds and pictures for samples."""
    row = measure.row_of(seeds[0].record)
    levels = {"published": published, "chance": row["chance"], "line": row["significance_line"]}
    values = np.array([measure.row_of(one.record)["value"] for one in seeds])
    is_struck = is_unsupported(seeds[0])
    if len(seeds) == 1:
        return Score(value=float(values[0]), low=row["low"], high=row["high"], is_struck=is_struck, **levels)
    found = seed_components(_by_unit([hits_of(one, measure) for one in seeds]))
    return Score(
        value=float(values.mean()),
        low=max(0.0, found.low),
        high=min(1.0, found.high),
        sd=float(values.std(ddof=1)),
        n_seeds=len(seeds),
        is_struck=is_struck,
        **levels,
    )


def mean_score(parts: Sequence[Score]) -> Score:
    """Return the plain mean of scores, without an interval: they are not independent of each other."""
    published = [part.published for part in parts if part.published is not None]
    return Score(
        value=float(np.mean([part.value for part in parts if part.value is not None])),
        published=float(np.mean(published)) if len(published) == len(parts) else None,
        chance=float(np.mean([part.chance for part in parts if part.chance is not None])),
        is_struck=any(part.is_struck for part in parts),
    )


def gain(
    ours: Sequence[Scored], theirs: Sequence[Scored], measure: Measure, *, published: float | None = None
) -> tuple[Score, float]:
    """Return the difference of two configurations on the same pictures, seed by seed, and its p-value.

    The interval takes seeds and pictures for samples; p flips the sign of whole pictures (`comparisons.sign_flip`).
    """
    a_SU = _by_unit([hits_of(one, measure) for one in ours])
    b_SU = _by_unit([hits_of(one, measure) for one in theirs])
    difference_SU = a_SU - b_SU
    mean_U = difference_SU.mean(axis=0)
    p = float(sign_flip(mean_U[:, None], np.arange(len(mean_U))).p_M[0])
    if len(ours) == 1:
        low, high = bootstrap_interval(mean_U, np.arange(len(mean_U)), small_sample=True)
    else:
        found = seed_components(difference_SU)
        low, high = found.low, found.high
    value = float(difference_SU.mean())
    return Score(value=value, low=max(-1.0, low), high=min(1.0, high), published=published, chance=0.0), p


def corrected_p(pairs: Sequence[tuple[Sequence[Scored], Sequence[Scored]]], measure: Measure) -> list[float]:
    """Return p-values of several differences at once: the chance of even one false claim among them is below each.

    The signs of whole pictures flip, the same in all differences (`comparisons.sign_flip`, the largest statistic).
    """
    columns = [
        (_by_unit([hits_of(one, measure) for one in ours]) - _by_unit([hits_of(one, measure) for one in theirs]))
        for ours, theirs in pairs
    ]
    difference_UM = np.stack([difference_SU.mean(axis=0) for difference_SU in columns], axis=1)
    return sign_flip(difference_UM, np.arange(len(difference_UM))).step_down_M.tolist()


def said_p(p: float) -> str:
    """Return a p-value in few digits."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def over_subjects(parts: Sequence[Sequence[Scored]], measure: Measure, *, published: float | None = None) -> Score:
    """Return the mean over subjects (each the seeds of its own training), drawn again with the pictures."""
    rows = [measure.row_of(one.record) for seeds in parts for one in seeds]
    found = [_mean_hits([hits_of(one, measure) for one in seeds]) for seeds in parts]
    value_Q = np.concatenate([hits.value_Q for hits in found])
    unit_Q = np.concatenate([hits.unit_Q for hits in found])
    subject_Q = np.repeat(np.arange(len(found)), [len(hits.value_Q) for hits in found])
    if len(parts) >= _MIN_SUBJECTS:
        low, high = twoway_interval(value_Q, subject_Q, unit_Q, n_resamples=4000)
    else:
        low, high = bootstrap_interval(value_Q, unit_Q, n_resamples=4000, small_sample=True)
    by_subject = [np.mean([measure.row_of(one.record)["value"] for one in seeds]) for seeds in parts]
    chance = float(np.mean([row["chance"] for row in rows]))
    return Score(
        value=float(np.mean(by_subject)),
        low=max(0.0, low),
        high=min(1.0, high),
        published=published,
        chance=chance,
        line=significance_line(len(np.unique(unit_Q)), chance),
        is_struck=any(is_unsupported(one) for seeds in parts for one in seeds),
    )


def is_unsupported(one: Scored) -> bool:
    """Say whether the data cannot carry the score: the order audit of the data set, or an audit of the run, is red."""
    audit = one.row.folder.parent.parent / "audit.json"
    verdict = json.loads(audit.read_text())["verdict"] if audit.exists() else ""
    return verdict == "unsupported" or one.record["dataset"]["grade"] == "red"


def circumstances(scored: Mapping[str, Scored], n_seeds: int) -> str:
    """Say in a sentence what was measured on what."""
    one = next(iter(scored.values()))
    row, config = one.record["rows"][0], trials.config_of(one.row.checkpoint)
    counts = {
        (row["n_images"], row["n_queries"])
        for found in scored.values()
        for row in found.record["rows"]
        if row["group_name"] == "all" and row["probe_side"] in (None, "eeg")
    }
    n_images, n_queries = max(counts, default=(row["n_images"], row["n_queries"]))
    seeds = f"{n_seeds} seeds" if n_seeds > 1 else "one seed"
    share = config.data.labelled
    told = "" if share == 1 else f" classes told of {100 * share:g} % of the training pictures;"
    return (
        f"Data set {one.record['dataset']['name']!r} (order audit: {one.record['dataset']['grade']}), split "
        f"{row['split']}, test: {n_queries} segments of {n_images} pictures;{told} {seeds}, "
        f"{config.train.max_passes} passes of batches of {config.train.batch_size}; {row['selection']} on validation; "
        "test set opened once for all."
    )


def _by_unit(seeds: Sequence[Hits]) -> np.ndarray:
    """Return the mean hit of each picture under each seed, [S, U]; the same pictures in all."""
    units = [np.unique(hits.unit_Q, return_inverse=True) for hits in seeds]
    if any(not np.array_equal(names, units[0][0]) for names, _ in units):
        raise InputError("the models were scored on other pictures; give them one split (data.split_seed)")
    return np.stack(
        [
            np.bincount(index_Q, weights=hits.value_Q) / np.bincount(index_Q)
            for hits, (_, index_Q) in zip(seeds, units, strict=True)
        ]
    )


def _mean_hits(seeds: Sequence[Hits]) -> Hits:
    by_unit = _by_unit(seeds).mean(axis=0)
    names = np.unique(seeds[0].unit_Q)
    return Hits(value_Q=by_unit, unit_Q=names, subject_Q=np.full(len(names), seeds[0].subject_Q[0]))
