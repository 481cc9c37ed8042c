"""The parts of a study's page, each from what the runs left; what is missing is said with the command that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from eegvision import pseudonyms
from eegvision.config import RunConfig
from eegvision.evaluate.statistics import significance_line
from eegvision.ledger import Opening
from eegvision.overrides import flatten
from eegvision.report import charts, published
from eegvision.report.charts import Chart, Dot
from eegvision.report.grid_tables import Table, percent
from eegvision.report.importance import FEWEST_TRIALS, main_effects
from eegvision.report.leaderboard import boards, circumstances, dot, model_label, p_text, title_of, validation_board
from eegvision.report.page import escaped
from eegvision.report.study_files import SUPPORTED, UNSUPPORTED, Run
from eegvision.report.tables import setting_name, varied

_GRADES = {SUPPORTED: "green", UNSUPPORTED: "red"}
_MOST_CLASS_ROWS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A section of the page, with the tables and charts on it, which also go into files."""

    title: str
    anchor: str
    html: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()


@dataclass(eq=False)
class _Body:
    """Collects a section's HTML with its tables and charts, in the order they are shown."""

    parts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)

    def text(self, words: str, style: str = "") -> None:
        self.parts.append(f"<p{f' class={style}' if style else ''}>{words}</p>")

    def missing(self, words: str, command: str) -> None:
        self.parts.append(f'<p class="missing">{escaped(words)} Make it with <code>{escaped(command)}</code>.</p>')

    def table(self, table: Table) -> None:
        self.tables.append(table)
        self.parts.append(table.to_html())

    def drawn(self, *found: Chart) -> None:
        """Add charts, halves beside each other."""
        self.charts += found
        figures = [f"<figure>{chart.html()}<figcaption>{chart.caption}</figcaption></figure>" for chart in found]
        kind = "half" if len(found) > 1 else "one"
        self.parts.append(f'<div class="panels {kind}">{"".join(figures)}</div>')

    def part(self, title: str, anchor: str) -> Part:
        return Part(title=title, anchor=anchor, html="".join(self.parts), tables=self.tables, charts=self.charts)


def paper_tables(found: Sequence[Run]) -> Part:
    """Both papers' tables with ours beside the published figures; the published ones alone below."""
    body = _Body()
    for run in found:
        for table in run.tables:
            body.table(_struck(table) if run.is_struck else table)
    if not body.tables:
        body.missing(
            "No table of Palazzo et al. or of NICE has been made in these runs.",
            "python jobs/palazzo.py --dataset NAME (Tables I to III) or python jobs/nice.py --dataset NAME",
        )
    alone = "".join(table.to_html() for table in published.tables())
    body.parts.append(f"<details><summary>What the papers printed, by itself</summary>{alone}</details>")
    return body.part("The papers' tables", "tables")


def _struck(table: Table) -> Table:
    rows = {label: [replace(cell, is_struck=cell.is_number) for cell in cells] for label, cells in table.rows.items()}
    return replace(table, rows=rows)


def leaderboard(found: Sequence[Run]) -> Part:
    """Scores on test, then on validation, each with intervals, chance and significance line."""
    body = _Body()
    made = boards(found)
    if made:
        body.text(
            "One table for each set of circumstances, because scores under different ones cannot be compared. The "
            "interval draws pictures again (and subjects, where there are five or more)."
        )
    for number, board in enumerate(made):
        body.table(board.table)
        if len(board.dots) > 1:
            body.drawn(
                charts.dots(
                    f"scores-{number}",
                    f"{board.table.title}: {board.metric}",
                    f"{escaped(board.metric)}, the numbers above.",
                    {board.metric: board.dots},
                    board.metric,
                )
            )
    for run in found:
        if not run.evaluations:
            command = f"python jobs/evaluate.py --run {run.name}"
            body.missing(f"No model of {run.name} has been scored on the test pictures.", command)
    for run in found:
        if board := validation_board(run):
            body.table(board.table)
    return body.part("Leaderboard", "leaderboard")


def audits(found: Sequence[Run]) -> Part:
    """What the control battery found, a row for each control."""
    body = _Body()
    body.text(
        "Each control asks whether a score could come from something other than the picture seen. A score whose audit "
        "is unsupported is shown struck through everywhere in this report."
    )
    for run in found:
        if run.audit is None:
            body.missing(f"The scores of {run.name} have not been audited.", f"python jobs/audit.py --run {run.name}")
            continue
        audit = run.audit
        seeds = f"; seeds {', '.join(map(str, audit['seeds']))}" if audit.get("seeds") else ""
        dataset = audit.get("dataset") or {}
        data = f"data {dataset.get('name', '?')} ({dataset.get('fingerprint', '?')})"
        badge = f'<span class="dot {_grade(audit["verdict"])}"></span>{escaped(audit["verdict"])}'
        body.parts.append(f"<h3>{escaped(run.name)}: {badge}</h3>")
        claim = f"{audit.get('claim', '')} ".lstrip()
        body.text(
            f"{escaped(claim)}Metric {escaped(audit.get('metric', '?'))}; {escaped(data)}{escaped(seeds)}.", "note"
        )
        head = "".join(f"<th{style}>{name}</th>" for name, style in _CONTROL_HEADS)
        rows = "".join(map(_control, audit["controls"]))
        body.parts.append(f'<table class="findings"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>')
    return body.part("Audit", "audit")


_NUMERIC = ' class="number"'
_CONTROL_HEADS = (
    ("control", ""), ("verdict", ""), ("what it says", ""), ("score", _NUMERIC), ("95 % interval", _NUMERIC),
    ("chance", _NUMERIC), ("p", _NUMERIC), ("n", _NUMERIC),
)  # fmt: skip


def _grade(verdict: object) -> str:
    return _GRADES.get(str(verdict), "amber")


def _control(control: Mapping[str, Any]) -> str:
    """Return one control as a row; scores are shares in per cent."""
    interval = "" if control.get("low") is None else f"[{_share(control['low'])}, {_share(control.get('high'))}]"
    n = control.get("n")
    numbers = (
        ("score", _share(control.get("value"))), ("interval", interval), ("chance", _share(control.get("chance"))),
        ("p", p_text(control.get("p"))), ("n", "" if n is None else f"{n}"),
    )  # fmt: skip
    cells = "".join(f'<td class="number" data-name="{name}">{escaped(text)}</td>' for name, text in numbers)
    source = f'<br><span class="note">{escaped(control["source"])}</span>' if control.get("source") else ""
    return (
        f'<tr class="{_grade(control["verdict"])}"><td class="check"><span class="dot"></span>'
        f"{escaped(control.get('title') or control['name'])}</td><td>{escaped(control['verdict'])}</td>"
        f"<td>{escaped(control['reason'])}{source}</td>{cells}</tr>"
    )


def _share(value: float | None) -> str:
    """Return a share in per cent; a statistic that is none as it is."""
    return "" if value is None else percent(value) if -1 <= value <= 1 else f"{value:.3g}"


def openings_of(found: Sequence[Run], openings: Sequence[Opening]) -> tuple[list[Opening], list[str]]:
    """Return the openings of the test set for models of these runs, and a warning for each set that was worn out."""
    names = {run.name for run in found}
    own = [opening for opening in openings if names & {str(model.get("run")) for model in opening.models}]
    by_test: dict[str, list[Opening]] = {}
    for opening in own:
        by_test.setdefault(opening.test_sha256, []).append(opening)
    warnings = []
    for test_sha256, of_test in by_test.items():
        models = {frozenset(model.get("model_sha256", "") for model in opening.models) for opening in of_test}
        if len(models) > 1:
            others = sum(opening.test_sha256 == test_sha256 for opening in openings) - len(of_test)
            more = f" (other runs opened it as well, {others} in the ledger)" if others else ""
            warnings.append(
                f"The test set of {of_test[0].dataset} was opened {len(of_test)} times for different models of these "
                f"runs{more}: what was scored after the first opening could be chosen on it, and is no test score."
            )
    return own, warnings


def ledger(found: Sequence[Run], openings: Sequence[Opening]) -> Part:
    """Who opened the test set for these runs, and when."""
    body = _Body()
    own, warnings = openings_of(found, openings)
    for warning in warnings:
        body.text(escaped(warning), "warn")
    if not own:
        body.missing(
            "The test set has not been opened for these runs.", f"python jobs/evaluate.py --run {found[0].name}"
        )
        return body.part("Openings of the test set", "ledger")
    heads = ("no.", "time", "data", "test set", "run", "models", "purpose")
    rows = []
    for opening in own:
        trials = sorted({f"{model.get('trial')} ({model.get('fingerprint')})" for model in opening.models})
        shown = ", ".join(trials[:4]) + (f" and {len(trials) - 4} more" if len(trials) > 4 else "")
        cells = (
            opening.number,
            opening.time,
            opening.dataset,
            opening.test_sha256[:12],
            opening.study,
            shown,
            opening.purpose,
        )
        label, *others = zip(heads, map(str, cells), strict=True)
        filled = "".join(
            f'<td class="{"words nowrap" if name == "time" else "words"}" data-name="{name}">'
            f"<span>{escaped(text)}</span></td>"
            for name, text in others
        )
        rows.append(f'<tr><th scope="row">{escaped(label[1])}</th>{filled}</tr>')
    head = "".join(f'<th class="words">{name}</th>' for name in heads)
    body.parts.append(
        f'<div class="wide"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "</div>"
    )
    return body.part("Openings of the test set", "ledger")


def architectures(found: Sequence[Run]) -> Part:
    """What of the settings went with the scores of the trials: main effects, and every trial as a line."""
    body = _Body()
    for run in found:
        scored = [trial for trial in run.trials if trial.metrics]
        settings = {setting_name(path): values for path, values in varied(scored).items()} if len(scored) > 1 else {}
        if not settings:
            body.missing(
                f"{run.name} has fewer than two trials with different settings, so there is nothing to compare.",
                "python jobs/sweep.py --dataset NAME --space search_spaces/demo.py --name NAME",
            )
            continue
        config = scored[0].config
        metric, sign = config.metric, -1 if config.mode == "min" else 1
        scored = [trial for trial in scored if metric in trial.metrics]
        settings = {setting_name(path): values for path, values in varied(scored).items()}
        score_N = [trial.metrics[metric] for trial in scored]
        body.parts.append(f"<h3>{escaped(run.name)}</h3>")
        n_early = sum(trial.status != "finished" for trial in scored)
        caveat = f"{len(scored)} trials, validation {metric} at the best pass; {n_early} did not run to the end."
        if effects := main_effects(settings, [sign * value for value in score_N]):
            body.drawn(
                charts.effects(
                    f"effects-{run.name}",
                    f"Main effects of settings in {run.name}",
                    "Share of the variance of the trials' ranks that goes with one setting (ε², adjusted for its "
                    "number of values; numbers in thirds), among the trials that have it (their number), interval by "
                    f"drawing trials again. {escaped(caveat)} "
                    "A searcher favours what did well, so this shows what went together, not what causes what.",
                    effects,
                )
            )
        else:
            body.text(f"With fewer than {FEWEST_TRIALS} trials no main effects of settings are told.", "missing")
        if metric.endswith("loss"):
            body.text(
                "No parallel coordinates: the trials were ranked by a loss, which has no level of guessing.", "missing"
            )
            continue
        order = [effect.name for effect in effects] if effects else []
        order += [name for name in settings if name not in order]
        body.drawn(
            charts.parallel(
                f"trials-{run.name}",
                f"Settings and scores of the trials of {run.name}",
                f"A line per trial, pale to dark from the worst to the best, the best red. {escaped(caveat)}",
                {name: settings[name] for name in order},
                score_N,
                metric,
                run.chance.get(metric),
                run.is_struck,
            )
        )
    return body.part("Architectures and settings", "architectures")


def learning(found: Sequence[Run]) -> Part:
    """Metrics after every pass: all trials, and the losses of the best one."""
    body = _Body()
    for run in found:
        scored = [trial for trial in run.trials if trial.history]
        if not scored:
            command = "python jobs/sweep.py, with the settings under “To run it again”"
            body.missing(f"{run.name} has no trial that got through a pass.", command)
            continue
        best, metric = scored[0], scored[0].config.metric
        histories = {
            f"trial {trial.number}": [done[metric] for done in trial.history]
            for trial in scored
            if all(metric in done for done in trial.history)
        }
        chance = run.chance.get(metric)
        line = None
        if chance and metric in ("val/top1", "val/accuracy") and "val/top1" in run.chance:
            line = significance_line(round(1 / run.chance["val/top1"]), chance, comparisons=len(scored))
        split = best.config.data.split
        body.drawn(
            charts.passes(
                f"passes-{run.name}",
                f"{metric} after every pass, {run.name}",
                f"{escaped(run.name)}: {escaped(metric)} on the validation side of the split {escaped(split)}, which "
                f"chose pass and trial. Significance line at 0.05 divided by {len(scored)} trials, at one pass."
                + (" Dotted: the audit says unsupported." if run.is_struck else ""),
                histories, f"trial {best.number}", metric, chance, line, run.is_struck,
            ),
            charts.losses(
                f"losses-{run.name}",
                f"Losses of the best trial of {run.name}",
                f"{escaped(run.name)}, trial {best.number}: losses; guessing has no level here.",
                best.history,
                best.best_pass,
            ),
        )  # fmt: skip
    return body.part("Learning curves", "learning")


def by_group(found: Sequence[Run], group_name: str, title: str, missing: str, command: str) -> Part:
    """Scores of the best models by subject, class or semantic category."""
    body = _Body()
    panels: dict[tuple[str, str], dict[str, list[Dot]]] = {}
    captions: dict[tuple[str, str], str] = {}
    for run, evaluation in _evaluations(found):
        label = model_label(run, evaluation["trial"], RunConfig.from_dict(evaluation["config"]), len(found) > 1)
        for row in evaluation["rows"]:
            if row["group_name"] != group_name or row["metric"] not in ("top-1", "accuracy"):
                continue
            key = (title_of(evaluation, row), row["metric"])
            own = panels.setdefault(key, {}).setdefault(label, [])
            own.append(dot(str(row["group"]), row, run.is_struck))
            captions[key] = "; ".join([*circumstances(evaluation, row)[:-1], "n by row"])
    for number, (key, groups) in enumerate(panels.items()):
        n_rows = len({entry.label for own in groups.values() for entry in own})
        if n_rows > _MOST_CLASS_ROWS:
            first = next(iter(groups.values()))
            keep = {entry.label for entry in sorted(first, key=lambda entry: -entry.value)[:_MOST_CLASS_ROWS]}
            groups = {label: [e for e in own if e.label in keep] for label, own in groups.items()}
        cut = f" The best {_MOST_CLASS_ROWS} of {n_rows}." if n_rows > _MOST_CLASS_ROWS else ""
        more = f" {charts.MOST_MODELS} of {len(groups)} models." if len(groups) > charts.MOST_MODELS else ""
        struck = " Crossed: the audit says unsupported." if any(e.is_struck for o in groups.values() for e in o) else ""
        ordered = {label: sorted(own, key=lambda entry: entry.label) for label, own in groups.items()}
        text = f"{escaped(key[0])}, {escaped(key[1])}: {escaped(captions[key])}.{cut}{more}{struck}"
        if list(ordered) and len(ordered) == 1:
            text = f"{escaped(next(iter(ordered)))}. {text}"
        body.drawn(charts.dots(f"{group_name}-{number}", f"{key[0]} by {group_name}", text, ordered, key[1]))
    if not panels:
        body.missing(missing, command)
    return body.part(title, group_name)


def _evaluations(found: Sequence[Run]) -> list[tuple[Run, Mapping[str, Any]]]:
    """Return the evaluations on test, or where there are none those on validation."""
    every = [(run, evaluation) for run in found for evaluation in run.evaluations]
    return [pair for pair in every if pair[1]["side"] == "test"] or every


def _best(found: Sequence[Run], what: str) -> list[tuple[Run, Mapping[str, Any]]]:
    """Return, of the evaluations that have `what`, the best one of each run and protocol by their first score."""
    best: dict[tuple[str, str], tuple[Run, Mapping[str, Any]]] = {}
    for run, evaluation in _evaluations(found):
        if evaluation.get(what) and evaluation["rows"]:
            key = (run.name, evaluation["protocol"])
            if key not in best or evaluation["rows"][0]["value"] > best[key][1]["rows"][0]["value"]:
                best[key] = (run, evaluation)
    return list(best.values())


def confusions(found: Sequence[Run]) -> Part:
    """Which class was taken for which, by class and (where known) by semantic category."""
    body = _Body()
    for number, (run, evaluation) in enumerate(_best(found, "confusion")):
        confusion = evaluation["confusion"]
        names, count_KK = list(map(str, confusion["classes"])), np.array(confusion["count_KK"], dtype=np.int64)
        label = model_label(run, evaluation["trial"], RunConfig.from_dict(evaluation["config"]), len(found) > 1)
        what = "class by the softmax probe" if evaluation["protocol"] == "probe" else "class of the picture found first"
        n = int(count_KK.sum())
        right = percent(np.trace(count_KK) / max(1, n))
        hit = f"<s>right class {right} %</s>" if run.is_struck else f"right class {right} %"
        where = f"{evaluation['side']} side, data {evaluation['dataset']['name']}"
        caption = (
            f"{escaped(label)}: {what}, {escaped(where)}; {hit}, guessing uniformly "
            f"{percent(1 / max(1, len(names)))} %; n = {n}."
        )
        drawn = [charts.confusion(f"confusion-{number}", "Confusion by class", caption, names, count_KK, run.is_struck)]
        if confusion.get("categories"):
            own, merged_GG = _merged(confusion["categories"], count_KK)
            text = f"The same by semantic category; guessing uniformly {percent(1 / len(own))} %."
            drawn.append(
                charts.confusion(f"categories-{number}", "Confusion by category", text, own, merged_GG, run.is_struck)
            )
        body.drawn(*drawn)
    if not body.charts:
        body.missing("No confusion of classes is known.", f"python jobs/evaluate.py --run {found[0].name}")
    return body.part("Confusion of classes", "confusion")


def _merged(category_K: Sequence[str], count_KK: np.ndarray) -> tuple[list[str], np.ndarray]:
    names, group_K = np.unique(np.array(category_K, dtype=str), return_inverse=True)
    merged_GG = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(merged_GG, (group_K[:, None], group_K[None, :]), count_KK)
    return names.tolist(), merged_GG


def repetition_curves(found: Sequence[Run]) -> Part:
    """Accuracy against the number of presentations averaged, with what guessing reaches."""
    body = _Body()
    made = []
    for number, (run, evaluation) in enumerate(_best(found, "curves")):
        label = model_label(run, evaluation["trial"], RunConfig.from_dict(evaluation["config"]), len(found) > 1)
        rows = evaluation["curves"]
        images = f" of {rows[0]['n_images']} pictures" if rows[0].get("n_images") else ""
        where = f"{evaluation['side']} side{images}, data {evaluation['dataset']['name']}"
        caption = (
            f"{escaped(label)}: {escaped(rows[0].get('metric', 'top-1'))}, {escaped(where)}; the band is what "
            "guessing with the same pictures reaches in "
            "97.5 % of permutations, for one subject." + (" Dotted: unsupported." if run.is_struck else "")
        )
        made.append(charts.repetitions(f"repetitions-{number}", "Repetition curve", caption, rows, run.is_struck))
    if made:
        body.drawn(*made)
    else:
        body.missing(
            "No repetition curve: it needs several presentations of each test picture to a subject.",
            f"python jobs/evaluate.py --run {found[0].name}",
        )
    return body.part("Presentations averaged", "repetitions")


def rerun(found: Sequence[Run], folder: str) -> tuple[Part, dict[str, str]]:
    """Everything needed to run it again, and the files to do it with, by name."""
    body, files = _Body(), {}
    for run in found:
        body.parts.append(f'<div class="run"><h3>{escaped(run.name)}</h3>')
        if "recipe" in run.identity:
            facts = ", ".join(f"{name} {value}" for name, value in sorted(run.identity.items()))
            body.text(f"Made by a recipe: {escaped(facts)}. The command again shows it, or goes on:")
            body.parts.append(f"<pre>{escaped(run.command)}</pre>")
        elif run.identity:
            files[f"{run.name}.yaml"] = _as_yaml({"name": run.name, **_search(run)}, run.base)
            job = "sweep" if run.is_searched else "train"
            body.text("Command, and what its file holds:")
            body.parts.append(f"<pre>python jobs/{job}.py --config {escaped(f'{folder}/{run.name}.yaml')}</pre>")
            body.parts.append(f"<pre>{escaped(files[f'{run.name}.yaml'])}</pre>")
            if run.identity.get("space.sha256"):
                text = f"The search space {run.identity['space']} had the SHA-256 {run.identity['space.sha256']}…"
                body.text(escaped(text), "note")
        scored = [trial for trial in run.trials if trial.metrics]
        if scored and "recipe" not in run.identity:
            file = f"{run.name}-best.yaml"
            files[file] = _as_yaml({}, scored[0].config)
            body.text(f"The best trial ({scored[0].number}) by itself:")
            body.parts.append(f"<pre>python jobs/train.py --config {escaped(f'{folder}/{file}')}</pre>")
            body.parts.append(f"<pre>{escaped(files[file])}</pre>")
        if run.identity and pseudonyms.has_names(run.base.to_dict()):
            body.text("Subjects are called by pseudonyms; to run it again, write their names instead.", "note")
        body.parts.append(_versions(run) + "</div>")
    return body.part("To run it again", "rerun"), files


def _search(run: Run) -> dict[str, Any]:
    """Return the options of the job a run was made by."""
    if not run.is_searched:
        return {}
    return {"space": f"search_spaces/{run.identity['space']}", **run.options}


def _as_yaml(options: Mapping[str, Any], config: RunConfig) -> str:
    """Return what differs from the defaults, as `--config` takes it."""
    default = flatten(RunConfig().to_dict())
    nested: dict[str, Any] = dict(options)
    for path, value in flatten(pseudonyms.public(config.to_dict())).items():
        if value != default[path] or path == "data.dataset":
            group, _, name = path.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[name] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def _versions(run: Run) -> str:
    codes = dict.fromkeys([run.code, *(str(evaluation.get("code", "")) for evaluation in run.evaluations)])
    facts = {"code": ", ".join(code for code in codes if code) or "not recorded"}
    facts |= {f"data set {name}": fingerprint for name, fingerprint in run.datasets.items()}
    facts |= {str(name): str(value) for name, value in run.environment.items()}
    if not run.environment:
        facts["environment"] = "not recorded: the run is not finished"
    rows = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in facts.items())
    return f'<details open><summary>Code, data and environment</summary><table class="plain">{rows}</table></details>'


Sections = Callable[[Sequence[Run]], Part]
_CATEGORIES = "python jobs/evaluate.py --run NAME --categories categories.csv"
ALL: tuple[Sections, ...] = (
    paper_tables,
    leaderboard,
    audits,
    architectures,
    learning,
    lambda found: by_group(
        found, "subject", "Subjects",
        "No scores by subject: no model has been scored, or the data have one subject.",
        f"python jobs/evaluate.py --run {found[0].name}",
    ),
    confusions,
    lambda found: by_group(
        found, "category", "Semantic categories", "No scores by semantic category.", _CATEGORIES
    ),
    repetition_curves,
)  # fmt: skip
"""The sections that need the runs alone, in the order they are shown."""
