"""Search encoders, embedding size, loss and optimiser with Ray Tune and Optuna.

    ray job submit -- python jobs/sweep.py      # all defaults: simulated data, the demo space, minutes on 2 cores
    python jobs/sweep.py --dataset NAME --space search_spaces/palazzo.py --trials 64 --name NAME

The same command again resumes an interrupted sweep, and shows the table of a finished one; with `--check True` it
only holds what lies in the sweep's folder against the log of what happened (exit code 1 where something is wrong).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.cli import print_line, run_job
from eegvision.config import PLACES, Place, RunConfig, SweepConfig

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Options:
    """Search encoders, embedding size, loss and optimiser; the same command again resumes."""

    name: str | None = None
    """Name of the sweep; by default SPACE-DATASET, or just SPACE where the two are called alike."""
    space: Path = ROOT / "search_spaces" / "demo.py"
    """Search space: a Python file with `space(trial)`."""
    place: Place | None = None
    """What a trial holds: sets workers, CPUs and GPUs per trial, where no flag says otherwise; without it one CPU, and
    a GPU where there are any."""
    check: bool = False
    """Only check what the sweep has left against its log."""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def base_of(options: Options) -> dict[str, object]:
    """Return the settings the search space and the place fix; flags and the configuration file go over them."""
    from eegvision.space import load_space

    names = ("workers_per_trial", "cpus_per_trial", "gpus_per_trial")
    place = dict(zip(names, PLACES[options.place], strict=True)) if options.place else {}
    return load_space(options.space).base | place


def main(options: Options) -> None:
    """Run or resume the sweep."""
    from eegvision import study
    from eegvision.space import load_space

    space, dataset = options.space.stem, Path(options.run.data.dataset).name
    name = options.name or (space if space == dataset else f"{space}-{dataset}")
    if options.check:
        sys.exit(study.check_run(name, print_line))
    study.ensure_demo(options.run.data.dataset, print_line)
    study.run_study(options.run, options.sweep, name=name, space=load_space(options.space), say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main, defaults=base_of))
