"""Every benchmark of this folder at a size for 2 cores, one after the other, and one table of what they found.

    make bench                                   at most 30 minutes on 2 cores
    python benchmarks/run_all.py [--only step channels] [--limit-s 300] [--no-gpu]

Each script runs with `--quick`, in a process and an EEGVISION_HOME of its own, and with `--gpu` where it has that and
the machine has a GPU. Its last lines say `RESULT` and one JSON object each: what was compared, unit, min, median and
max, target and peer. The table, and under it all that the scripts printed, goes to EEGVISION_HOME/bench/DATE.md.

`holds` compares the median with the target. A miss here is no failure: these are small sizes on a machine that may be
busy, and the dated files beside the scripts have the full ones. A script that breaks, prints no figure or takes longer
than `--limit-s` is a row that says so, and the exit status is 1. Scripts whose head says that they need root, or hours,
are left out and listed.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eegvision.vocab import home

FOLDER = Path(__file__).resolve().parent
FIELDS = {"what", "unit", "min", "median", "max", "target", "peer"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
COLUMNS = "benchmark | what | min | median | max | unit | target | holds | peer | s | load"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a script printed, and how it ended; `error` is empty where it ended well."""

    name: str
    output: str
    seconds: float
    load: float
    error: str = ""

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(line[7:]) for line in self.output.splitlines() if line.startswith("RESULT ")]

    @property
    def fault(self) -> str:
        """What is wrong with the figures, or nothing."""
        try:
            lacking = [FIELDS - figure.keys() for figure in self.figures]
        except json.JSONDecodeError as error:
            return f"a RESULT is no JSON: {error}"
        if not lacking:
            return "printed no RESULT"
        return f"a RESULT lacks {', '.join(sorted(set.union(*lacking)))}" if any(lacking) else ""


def why_left_out(path: Path) -> str:
    """Return the sentence of a script's head that says it needs root or hours, or nothing."""
    head = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    found = re.search(r"[Nn]eeds (?:root|hours)[^.]*", head)
    return found.group() if found else ""


def stop(process: subprocess.Popen[str]) -> None:
    """End a script with all that it started in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def run(path: Path, *, limit_s: float, has_gpu: bool) -> Outcome:
    """Run a script as a user would and return what it printed, errors among it."""
    flags = ["--quick", *(["--gpu"] if has_gpu and '"--gpu"' in path.read_text() else [])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "EEGVISION_"))}
    began, error = time.monotonic(), ""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, str(path), *flags],
            cwd=FOLDER.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=kept | {"EEGVISION_HOME": folder, "TMPDIR": folder} | QUIET,
        )  # fmt: skip
        try:
            output = process.communicate(timeout=limit_s)[0]
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit_s:.0f} s"
            stop(process)
            output = process.communicate()[0]
        except BaseException:
            stop(process)
            raise
    outcome = Outcome(
        name=path.stem, output=output, seconds=time.monotonic() - began, load=os.getloadavg()[0], error=error
    )
    if process.returncode and not error:
        lines = output.strip().splitlines() or ["nothing printed"]
        error = f"ended with {process.returncode}: {lines[-1]}"
    return replace(outcome, error=error or outcome.fault)


def holds(figure: dict[str, Any]) -> str:
    """Return whether the median is on the right side of a target such as '>= 10'."""
    found = re.match(r"\s*([<>]=?|[≤≥])\s*([\d.]+)", figure["target"] or "")
    if not found:
        return ""
    limit, is_least = float(found.group(2)), found.group(1)[0] in ">≥"
    is_held = figure["median"] >= limit if is_least else figure["median"] <= limit
    return "yes" if is_held else "**no**"


def rows(outcome: Outcome) -> list[str]:
    """Return the rows of a script in the table."""
    ends = f"{outcome.seconds:.0f} | {outcome.load:.1f}"
    if outcome.error:
        return [f"{outcome.name} | **failed**: {outcome.error.replace('|', '/')} | | | | | | | | {ends}"]
    found = []
    for figure in outcome.figures:
        spread = f"{figure['min']:.3g} | **{figure['median']:.3g}** | {figure['max']:.3g}"
        against = f"{figure['unit']} | {figure['target'] or ''} | {holds(figure)} | {figure['peer']}"
        found.append(f"{outcome.name} | {figure['what']} | {spread} | {against} | {ends}")
    return found


def page(outcomes: list[Outcome], left_out: dict[str, str], where: str) -> str:
    """Return the table, what was left out, and the tables of the scripts."""
    table = [COLUMNS, "|".join(["---"] * (1 + COLUMNS.count("|"))), *(row for one in outcomes for row in rows(one))]
    lines = [f"# Benchmarks, {time.strftime('%Y-%m-%d %H:%M')}", "", where, "", *(f"| {row} |" for row in table), ""]
    lines += [f"Left out: {name}: {reason}." for name, reason in left_out.items()]
    for one in outcomes:
        printed = [line for line in one.output.splitlines() if not line.startswith("RESULT ")]
        lines += ["", f"## {one.name}", "", *printed]
    return "\n".join(lines) + "\n"


def machine(has_gpu: bool) -> str:
    """Return what the figures were taken on."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray", "numpy"))
    gpu = ""
    if has_gpu:
        import torch

        gpu = f", {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores{gpu}, Python {platform.python_version()}, {versions}; every script with --quick."


def main() -> int:
    """Run all and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="names of scripts; by default all")
    parser.add_argument("--limit-s", type=float, default=300, help="after which a script is stopped")
    parser.add_argument("--no-gpu", action="store_true", help="leave a GPU alone")
    options = parser.parse_args()
    scripts = [path for path in sorted(FOLDER.glob("[!_]*.py")) if path != Path(__file__).resolve()]
    if unknown := set(options.only) - {path.stem for path in scripts}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    scripts = [path for path in scripts if path.stem in options.only or not options.only]
    left_out = {path.stem: reason for path in scripts if (reason := why_left_out(path))}
    scripts = [path for path in scripts if path.stem not in left_out]

    import torch

    has_gpu = torch.cuda.is_available() and not options.no_gpu
    outcomes: list[Outcome] = []
    for path in scripts:
        print(f"{len(outcomes) + 1} of {len(scripts)}: {path.stem}", flush=True)
        outcomes.append(run(path, limit_s=options.limit_s, has_gpu=has_gpu))
        print(*(f"    {row}" for row in rows(outcomes[-1])), sep="\n", flush=True)
    text = page(outcomes, left_out, machine(has_gpu))
    target = home() / "bench" / time.strftime("%Y-%m-%d-%H%M.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    print("\n" + text.split("\n## ")[0])
    n_failed = sum(bool(one.error) for one in outcomes)
    print(f"{len(outcomes)} benchmarks, {n_failed} failed, {sum(one.seconds for one in outcomes) / 60:.0f} minutes")
    print(f"the table and all that was printed: {target}")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
