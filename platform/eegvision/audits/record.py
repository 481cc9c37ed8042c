"""The audit of one trained configuration: train its controls, weigh the evidence, leave `RUN/audit.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegvision import checkpoint, cluster, features, grid, runs, trials
from eegvision.assess.embedding import open_store
from eegvision.audits import Budget, measure
from eegvision.audits.measure import Scored
from eegvision.audits.plan import Planned, fold_queries, key_of, plan
from eegvision.config import RunConfig
from eegvision.evaluate import audit
from eegvision.evaluate.answers import Answers, Drop, Score, against_chance, crossed, drop
from eegvision.evaluate.audit import AuditResult, Evidence
from eegvision.fanout import spread
from eegvision.grid import Cell
from eegvision.ingest import shards
from eegvision.ingest.shards import Manifest
from eegvision.stream import Store
from eegvision.tracking import Tracker, code_version
from eegvision.trials import TrialRow
from eegvision.vocab import InputError

Say = Callable[[str], None]
Found = Mapping[str, np.ndarray]

_FOLDS = 5
_OTHER_CLASSES = ("zero-shot", "concept-disjoint")  # rules whose validation shows classes that are not trained on
_NOT_ABOVE = "the claim is not above chance, so there is nothing to explain"


def run_audit(name: str, *, trial: int | None, budget: Budget, say: Say) -> AuditResult:
    """Audit a trial of the run `name` (the best one, if no number is given), log and show the verdicts.

    The configuration is trained again with seeds of its own, as it is and with one thing after another taken away, for
    as many passes as the audited model was. All are scored on the run's validation pictures after their last pass; its
    test pictures are not scored. Trainings lie in `RUN/audit/`; finished ones are not run again.

    Raises:
        InputError: there is no such run or trial, its data have changed, or it reads no EEG.
        RunInUseError: another process audits this run.
    """
    folder = runs.named_folder("runs", name)
    own = trials.find_trial(folder, trial)
    audited = _audited(own)
    base = audited.config.with_overrides(
        {"train.max_passes": budget.passes or audited.best_pass, "train.patience": None}
    )
    root = shards.dataset_root(base.data.dataset)
    manifest = shards.read_manifest(root)
    _refuse_other_data(audited, manifest)
    # Seeds that no trial of the run had: what was chosen with those shall not be weighed by them.
    seeds = tuple(range(base.seed + 1, base.seed + 1 + budget.seeds))
    say(f"{name}, trial {audited.number}: controls are trained for {base.train.max_passes} passes with {budget.seeds} "
        "seeds each, and scored on validation pictures; the test pictures stay closed")  # fmt: skip
    shards.verify(root, manifest)
    cluster.enter(say)
    # Another number of passes makes other trainings, which lie elsewhere; more seeds join those that are there.
    work = folder / "audit" / base.fingerprint()
    with runs.sole_owner(work):
        features.warm([base], say=say)
        bench = _Bench(base, open_store(base), manifest, seeds, work, budget, say)
        verdict, reason, controls = audit.judge(_evidence(bench, audited))
    result = AuditResult(
        verdict=verdict,
        reason=reason,
        claim=_claim_text(bench.metric, base),
        metric=_metric_name(bench.metric, base),
        seeds=seeds,
        controls=controls,
        circumstances={
            "run": name,
            "trial": audited.number,
            "dataset": {"name": manifest.name, "fingerprint": manifest.fingerprint, "grade": manifest.grade},
            "config": base.to_dict(),
            "fingerprint": audited.config.fingerprint(),
            "passes": base.train.max_passes,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "code": code_version(),
        },
    )
    path = folder / "audit.json"
    runs.write_whole(path, json.dumps(result.to_dict(), indent=2))
    text = table(result)
    runs.write_whole(folder / "audit.txt", text)
    _track(result, folder, own.name, text)
    say(f"\n{text}\n\nverdicts            {path}\ntrainings           {work}")
    return result


def _audited(own: Path) -> TrialRow:
    path = checkpoint.latest(own / "best")
    if path is None:
        raise InputError(f"trial {own.name} left no whole checkpoint in {own / 'best'}; choose another trial")
    config = trials.config_of(path)
    if config.loss.arm == "image":
        raise InputError(f"trial {own.name} classifies images alone; an audit asks where a score from EEG comes from")
    if config.data.control is not None:
        raise InputError(f"trial {own.name} was broken on purpose (data.control {config.data.control!r}) already")
    return trials.read_trial(own, config)


def _refuse_other_data(audited: TrialRow, manifest: Manifest) -> None:
    trained_on = checkpoint.load(audited.checkpoint)[1]["data"]["fingerprint"]
    if trained_on != manifest.fingerprint:
        raise InputError(
            f"trial {audited.trial_id} was trained on data {trained_on}, and {audited.config.data.dataset!r} is now "
            f"{manifest.fingerprint}; bring those data back, or train again"
        )


# ---- trainings and answers


class _Bench:
    """Trains configurations with every seed and keeps what the models answered."""

    def __init__(
        self,
        base: RunConfig,
        store: Store,
        manifest: Manifest,
        seeds: tuple[int, ...],
        folder: Path,
        budget: Budget,
        say: Say,
    ) -> None:
        self.base, self.store, self.manifest, self.seeds = base, store, manifest, seeds
        self.rows: dict[str, TrialRow] = {}
        self._folder, self._budget, self._say = folder, budget, say
        self._found: dict[str, Found] = {}
        label_Q = store.label_N[store.split.rows["val"]]
        self.metric: Literal["class", "picture"] = "class" if len(np.unique(label_Q[label_Q >= 0])) > 1 else "picture"

    def fit(self, cells: Sequence[Cell]) -> None:
        """Train cells; what did not finish is in `rows` with its reason."""
        options = {"cpus": self._budget.cpus, "gpus": self._budget.gpus}
        self.rows |= grid.fit_all(cells, self._folder, say=self._say, **options)

    def score(self, tasks: Sequence[Scored]) -> None:
        """Have models answer, in Ray tasks."""
        gpus = float(cluster.size()[1] > 0)
        self._found |= dict(spread(measure.answer, tasks, cpus=self._budget.cpus, gpus=gpus))

    def tasks(self, name: str, planned: Planned, *, own_view: bool) -> list[Scored]:
        """Return what is to be scored of a control: on its own view of the data, or on the audited run's."""
        return [
            Scored(
                key=cell.key,
                checkpoint=measure.last_pass(self.rows[cell.key]),
                view=cell.config if own_view else self.base,
                has_images=name in ("claim", "random-codebook") and self.base.loss.arm == "joint",
            )
            for cell in planned.cells(name, self.seeds)
            if self.rows[cell.key].status == "finished"
        ]

    def failed(self, name: str, planned: Planned) -> str:
        """Say why a control has no numbers; empty where it has them. Every training of it must have finished."""
        if planned.why_not:
            return planned.why_not
        rows = [self.rows[cell.key] for cell in planned.cells(name, self.seeds)]
        bad = next((row for row in rows if row.status != "finished"), None)
        return "" if bad is None else f"training {bad.trial_id} {bad.status}: {bad.message}"

    def found(self, name: str, part: str = "") -> list[Found]:
        """Return what the models of a control answered, one per seed."""
        return [self._found[key_of(name, part, seed)] for seed in self.seeds]

    def answers(self, name: str, part: str = "") -> Answers:
        """Return the answers of a control in the metric of the claim."""
        return measure.joined(self.found(name, part), self.metric)


def _evidence(bench: _Bench, audited: TrialRow) -> Evidence:
    """Train and score the claim, and if it is above chance its controls."""
    itself = Planned(parts={"": bench.base})
    bench.fit(itself.cells("claim", bench.seeds))
    if why := bench.failed("claim", itself):
        raise InputError(f"the audited configuration does not train again with another seed: {why}")
    bench.score(bench.tasks("claim", itself, own_view=False))
    claim = against_chance(bench.answers("claim"))
    if claim.is_above:
        planned = plan(bench.base, bench.store, bench.manifest, folds=_FOLDS)
        cells = [cell for name, one in planned.items() for cell in one.cells(name, bench.seeds)]
        replay = _replay(bench, planned)
        bench.fit([*cells, *([replay[1]] if replay else [])])
        shared = ("leave-block-out", "time-purged", "thinned-purge")
        bench.score([t for name, one in planned.items() for t in bench.tasks(name, one, own_view=name not in shared)])
    else:
        planned, replay = {}, None
    return _weigh(bench, audited, claim, planned, replay)


def _replay(bench: _Bench, planned: Mapping[str, Planned]) -> tuple[str, Cell] | None:
    """Return one of the last trainings, and the same for its first pass alone."""
    optim = bench.base.optim
    if optim.schedule != "constant" or optim.warmup > 0:
        return None
    name = "leave-block-out" if planned["leave-block-out"].parts else "shuffled-pairs"
    if not planned[name].parts:
        return None
    last = planned[name].cells(name, bench.seeds)[-1]
    return last.key, Cell(key=f"{last.key}-again", config=last.config.with_overrides({"train.max_passes": 1}))


def _weigh(
    bench: _Bench,
    audited: TrialRow,
    claim: Score,
    planned: Mapping[str, Planned],
    replay: tuple[str, Cell] | None,
) -> Evidence:
    nothing = Planned(why_not=_NOT_ABOVE)

    def tested(name: str) -> Score | str:
        why = bench.failed(name, planned.get(name, nothing))
        return why or against_chance(bench.answers(name))

    first_losses: tuple[float, float] | str = _NOT_ABOVE if not planned else (
        "the learning rate of a first pass depends on how many follow"
    )  # fmt: skip
    if replay and all(bench.rows[key].history for key in (replay[0], replay[1].key)):
        first_losses = tuple(bench.rows[key].history[0]["train/loss"] for key in (replay[0], replay[1].key))  # type: ignore[assignment]
    pictures: Score | str = "nothing is retrieved by a classifier"
    if bench.base.loss.arm == "joint":
        pictures = against_chance(measure.joined(bench.found("claim"), "picture"))
    findings = {finding["check"]: finding for finding in bench.manifest.audit["findings"]}
    metric = _metric_name(bench.metric, bench.base)
    n_shared, near = measure.shared_pictures(bench.base, bench.store)
    return Evidence(
        metric=bench.metric,
        order=findings,
        claim=claim,
        pictures=pictures,
        blocks=_blocks(bench, planned.get("leave-block-out", nothing)),
        in_blocks=tested("shuffled-in-blocks"),
        shuffled=tested("shuffled-pairs"),
        relabelled=tested("relabel"),
        slow={
            name.removeprefix("slow-drift "): tested(name) for name in planned if name.startswith("slow-drift")
        } or {"below 1 Hz and below 5 Hz": _NOT_ABOVE},
        before_onset=tested("pre-stimulus"),
        codes=_codes(bench, planned.get("random-codebook", nothing)),
        purge=_purge(bench, planned, findings),
        n_shared_pictures=n_shared,
        near_duplicates=near,
        selection=measure.passes([bench.rows[key_of("claim", "", seed)] for seed in bench.seeds], metric),
        first_losses=first_losses,
        audited=f"; the audited model itself, at its pass chosen on these, {100 * audited.metrics[metric]:.1f} %",
    )  # fmt: skip


def _blocks(bench: _Bench, folds: Planned) -> Drop | str:
    if why := bench.failed("leave-block-out", folds):
        return why
    of_class = bench.metric == "class" and bench.base.data.split not in _OTHER_CLASSES
    parts = [bench.answers("leave-block-out", part) for part in folds.parts]
    fold_Q, n_unknown = np.full(len(parts[0].query_Q), -1), 0
    for fold, config in enumerate(folds.parts.values()):
        known, n_lost = fold_queries(config, of_class=of_class)
        fold_Q[np.isin(parts[0].query_Q, known)] = fold
        n_unknown += n_lost
    if 2 * n_unknown > len(fold_Q):
        return f"{n_unknown} of {len(fold_Q)} validation segments show a class that was recorded in one fold only"
    try:
        return crossed(parts, fold_Q)
    except InputError as error:
        return str(error)


def _of_known(answers: Answers, query_Q: np.ndarray) -> Answers:
    return answers.of(query_Q[np.isin(query_Q, answers.query_Q)])


def _drop(bench: _Bench, name: str, thinned: Planned, apart: Answers) -> Drop:
    """Compare with models that had the leak and as little to train on; else with those of the claim."""
    if bench.failed(name, thinned):
        return drop(bench.answers("claim"), apart, is_matched=False)
    # A few of the claim's validation pictures can be in the smaller training set.
    held = bench.tasks(name, thinned, own_view=True)[0].view.data
    return drop(_of_known(bench.answers(name), _validated(held)), apart, is_matched=True)


def _validated(data: Any) -> np.ndarray:
    from eegvision import stream

    store = stream.load_store(data, None)
    return store.segment_id_N[store.split.rows["val"]]


def _purge(bench: _Bench, planned: Mapping[str, Planned], findings: Mapping[str, Any]) -> Drop | str | None:
    overlap = findings.get("overlap", {"grade": "amber", "sentence": "Whether segments share samples is not known."})
    if overlap["grade"] == "green" or bench.base.data.purge_s is not None:
        return None
    if "time-purged" not in planned:
        return overlap["sentence"]
    if why := bench.failed("time-purged", planned["time-purged"]):
        return f"{overlap['sentence']} {why}"
    return _drop(bench, "thinned-purge", planned["thinned-purge"], bench.answers("time-purged"))


def _codes(bench: _Bench, planned: Planned) -> Drop | str:
    if why := bench.failed("random-codebook", planned):
        return why
    if bench.metric != "class":
        return "pictures have no classes to give codes to"
    with_eeg, with_codes = (measure.image_answers(bench.found(name)) for name in ("claim", "random-codebook"))
    return drop(with_eeg, with_codes, is_matched=True)


# ---- what is left of it


def _metric_name(metric: str, base: RunConfig) -> str:
    if base.loss.arm != "joint":
        return "val/accuracy"
    return "val/class_top1" if metric == "class" else "val/top1"


def _claim_text(metric: str, base: RunConfig) -> str:
    what = "the class of a picture" if metric == "class" else "the very picture"
    return f"{base.eeg.encoder} tells {what} it was not trained on from EEG, by what was seen"


def table(result: AuditResult) -> str:
    """Return the verdicts as text, the overall one first."""
    lines = [f"{result.verdict.upper()}: {result.claim}", f"  {result.reason}", ""]
    width = max(len(control.title) for control in result.controls)
    for control in result.controls:
        mark = control.verdict if control.is_decisive else f"({control.verdict})"
        lines.append(f"{control.title:{width}}  {mark:14}  {control.reason}")
    lines += ["", "in brackets: does not decide; stated because readers ask"]
    return "\n".join(lines)


def _track(result: AuditResult, folder: Path, trial: str, text: str) -> None:
    key = f"{folder.name}/audit/{trial}"
    with Tracker(folder / "spool", experiment=folder.name) as tracker:
        circumstances = result.circumstances
        tags = {
            "eegvision.kind": "audit",
            "eegvision.model": f"{folder.name}/{trial}",
            "eegvision.config": circumstances["fingerprint"],
            "eegvision.dataset": circumstances["dataset"]["fingerprint"],
            "eegvision.code": circumstances["code"],
            "eegvision.verdict": result.verdict,
        }
        params = {"run": folder.name, "trial": circumstances["trial"], "passes": circumstances["passes"],
                  "seeds": " ".join(map(str, result.seeds))}  # fmt: skip
        tracker.start(key, name=f"audit {circumstances['trial']:03d}", tags=tags, params=params)
        tracker.tag(key, {"eegvision.verdict": result.verdict})  # a repeated audit may come to another
        for control in result.controls:
            if control.value is not None:
                name = f"audit/{control.name.replace(' ', '_')}"
                tracker.metrics(key, {name: control.value}, step=0)
        tracker.note(key, f"```\n{text}\n```")
        tracker.artifact(key, folder / "audit.json")
        tracker.finish(key, "FINISHED")
