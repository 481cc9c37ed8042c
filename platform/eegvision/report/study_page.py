"""The report of a study: one HTML file without scripts, and beside it its numbers, LaTeX tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eegvision import ledger, pseudonyms
from eegvision.report import sections
from eegvision.report.grid_tables import Table, percent
from eegvision.report.leaderboard import boards
from eegvision.report.page import escaped, section, write_page
from eegvision.report.sections import Part
from eegvision.report.study_files import SUPPORTED, UNSUPPORTED, Run, read_run
from eegvision.vocab import InputError

_LATEX_HEAD = "% Needs: \\usepackage{booktabs} and \\usepackage[normalem]{ulem}\n"
_VERDICTS = {
    "green": "The control battery supports the scores of this report.",
    "amber": "Not settled: read what is missing, or in doubt, below.",
    "red": "Do not believe the scores that are struck through: a control explains them without the picture seen.",
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files of a report: the page, its rows, and the folder with LaTeX tables, figures and configurations."""

    page: Path
    rows: Path
    folder: Path


def study_page(names: Sequence[str], out: Path) -> Written:
    """Write the report of the runs `names` to `out`, whole or not at all; files with the same stem go beside it.

    `STEM.csv` has every row of every evaluation, trial, control and table; `STEM/tables.tex` the tables,
    `STEM/figures/` every figure as SVG and PDF with a CSV, `STEM/NAME.yaml` the configurations.

    Raises:
        InputError: no run is named, a name repeats or is unknown, `out` is no .html file, or a file is damaged.
    """
    out = Path(out)
    if not names or len(set(names)) < len(names):
        raise InputError(f"the runs are {list(names)}; name at least one, each once")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out is {out}; the report is a page, so give it the ending .html")
    found = [read_run(name) for name in names]
    openings = ledger.openings()
    folder = out.with_suffix("")
    parts = [make(found) for make in sections.ALL]
    parts.insert(3, sections.ledger(found, openings))
    last, files = sections.rerun(found, folder.name)
    parts.append(last)
    tables = [table for part in parts for table in part.tables]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    latex = _LATEX_HEAD + "\n".join(table.to_latex() for table in tables)
    (folder / "tables.tex").write_text(latex, encoding="utf-8")
    for part in parts:
        for chart in part.charts:
            chart.save(folder / "figures")
    rows = out.with_suffix(".csv")
    _write_rows(rows, found, tables)
    head = _head(found, sections.openings_of(found, openings)[1], parts)
    body = [head, *(section(part.title, part.html, part.anchor) for part in parts)]
    page = write_page(out, f"{', '.join(names)}: study report", body)
    return Written(page=page, rows=rows, folder=folder)


def _head(found: Sequence[Run], warnings: Sequence[str], parts: Sequence[Part]) -> str:
    grade = _grade(found, warnings)
    n_trials = sum(len(run.trials) for run in found)
    n_scored = sum(len(run.evaluations) for run in found)
    datasets = {f"{name} ({fingerprint})" for run in found for name, fingerprint in run.datasets.items()}
    counts = f"{_count(n_trials, 'trial')}, {_count(n_scored, 'evaluation')}"
    size = f"{counts}; data {', '.join(sorted(datasets)) or 'not recorded'}"
    links = "".join(f'<a href="#{part.anchor}">{escaped(part.title)}</a>' for part in parts)
    known = "".join(f"<li>{text}</li>" for text in _findings(found))
    doubts = "".join(f'<li class="warn">{escaped(text)}</li>' for text in warnings)
    doubts += "".join(f"<li>{escaped(text)}</li>" for text in _doubts(found))
    badge = {"green": SUPPORTED, "red": UNSUPPORTED, "amber": "not settled"}[grade]
    why = f"<div><h3>Found</h3><ul>{known}</ul></div>" if known else ""
    why += f"<div><h3>To know</h3><ul>{doubts}</ul></div>" if doubts else ""
    return (
        f'<header class="{grade}"><p class="eyebrow">Study report</p>'
        f"<h1>{escaped(', '.join(run.name for run in found))}</h1>"
        f'<p class="size">{escaped(size)}</p><div class="verdict"><span class="badge">{badge}</span>'
        f'<strong>{_VERDICTS[grade]}</strong></div><div class="why">{why}</div><nav>{links}</nav></header>'
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _grade(found: Sequence[Run], warnings: Sequence[str]) -> str:
    verdicts = {run.verdict for run in found}
    is_tested = all(any(evaluation["side"] == "test" for evaluation in run.evaluations) for run in found)
    is_green = verdicts == {SUPPORTED} and is_tested and not warnings
    return "red" if UNSUPPORTED in verdicts else "green" if is_green else "amber"


def _findings(found: Sequence[Run]) -> list[str]:
    """Return what each table says of the test side in a sentence, as HTML; to name the best is to choose on test."""
    sentences = []
    for board in boards(found):
        if "(test)" not in board.table.title or not board.dots:
            continue
        if len(board.dots) > 1:
            values = [dot.value for dot in board.dots]
            span = f"{percent(min(values))} to {percent(max(values))} %"
            sentences.append(f"{escaped(board.table.title)}: {len(values)} models, {escaped(board.metric)} {span}")
            continue
        best = board.dots[0]
        interval = "" if best.low is None else f" [{percent(best.low)}, {percent(best.high)}]"
        line = "" if best.line is None else f", significance line {percent(best.line)} %"
        score = f"{board.metric} {percent(best.value)} %{interval}"
        score = f"<s>{escaped(score)}</s>" if best.is_struck else f"<strong>{escaped(score)}</strong>"
        sentences.append(
            f"{escaped(board.table.title)}: {score}, chance {percent(best.chance)} %{line} ({escaped(best.label)})"
        )
    return sentences


def _doubts(found: Sequence[Run]) -> list[str]:
    sentences = []
    for run in found:
        if run.audit is None:
            sentences.append(f"{run.name} has not been audited; python jobs/audit.py --run {run.name}")
        elif run.verdict != SUPPORTED:
            bad = [control for control in run.audit["controls"] if control["verdict"] == run.verdict]
            names = "; ".join(str(control["reason"]) for control in bad) or "see the audit"
            sentences.append(f"{run.name} is {run.verdict}: {names}")
        if not any(evaluation["side"] == "test" for evaluation in run.evaluations):
            sentences.append(f"The test pictures are closed for {run.name}: its scores are those it was chosen on")
        grades = {evaluation["dataset"].get("grade") for evaluation in run.evaluations} & {"amber", "red"}
        sentences += [f"The order audit of the data of {run.name} is {grade}" for grade in sorted(grades)]
    return sentences


def _write_rows(path: Path, found: Sequence[Run], tables: Sequence[Table]) -> None:
    """Write every number with what it must be read with, one a line; `kind` says what it is."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run in found:
        own = {"run": run.name, "audit": run.verdict or "none", "is_struck": run.is_struck}
        for evaluation in run.evaluations:
            shared = {name: evaluation.get(name) for name in ("trial", "protocol", "side", "selection", "seed", "code")}
            shared |= {"fingerprint": evaluation.get("fingerprint"), "model_sha256": evaluation.get("model_sha256")}
            shared |= {f"dataset.{name}": value for name, value in evaluation["dataset"].items()}
            shared["opening"] = (evaluation.get("opening") or {}).get("number")
            rows += [{"kind": "evaluation", **own, **shared, **row} for row in evaluation["rows"]]
            rows += [{"kind": "repetition curve", **own, **shared, **row} for row in evaluation.get("curves") or []]
        for trial in run.trials:
            shared = {"kind": "validation, chosen on", **own, "trial": trial.trial_id, "number": trial.number}
            shared |= {"status": trial.status, "side": "val", "passes": trial.passes, "best_pass": trial.best_pass}
            shared |= {"fingerprint": trial.config.fingerprint(), **pseudonyms.public(trial.config.flat())}
            rows += [
                {**shared, "metric": name, "value": value, "chance": run.chance.get(name)}
                for name, value in trial.metrics.items()
                if name.startswith("val/")
            ]
        for control in (run.audit or {}).get("controls", ()):
            rows.append({"kind": "audit control", **own, **_renamed(control)})
    for table in tables:
        for label, cells in table.rows.items():
            rows += [
                {"kind": "table", "table": table.title, "row": label, "column": column, **cell.to_dict()}
                for column, cell in zip(table.columns, cells, strict=True)
            ]
    partial = path.with_name(f".{path.name}.partial")
    pd.DataFrame(rows).to_csv(partial, index=False)
    partial.rename(path)


def _renamed(control: Mapping[str, Any]) -> dict[str, Any]:
    return {f"control {name}" if name in ("name", "title") else name: value for name, value in control.items()}
