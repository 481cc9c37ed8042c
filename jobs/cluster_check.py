"""Could runs go here, and could strangers get in? A line for each thing, with what to do where something is wrong.

    python jobs/cluster_check.py                      # the cluster of RAY_ADDRESS, else this machine
    ray job submit -- python jobs/cluster_check.py    # from inside a cluster

Looks at the cluster and its token, at every node's versions, storage and GPUs, at Ray's memory, at MLflow with its
login and host check, and at what waits for MLflow. Leaves nothing behind. Ends with code 2 where a run would fail.
"""

import sys
from dataclasses import dataclass

import _checkout  # noqa: F401  (before eegvision)

from eegvision.cli import print_line, run_job
from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look at the cluster of RAY_ADDRESS, or else at this machine, and say what would stop a run."""

    alone: bool = False
    """Look at this machine without starting or joining Ray (seconds faster)."""


def main(options: Options) -> None:
    """Look, and say."""
    from eegvision import readiness

    seen = []
    for finding in readiness.findings(alone=options.alone):
        seen.append(finding.verdict)
        print_line(str(finding))
    if n := seen.count("fault"):
        raise InputError(f"{n} {'thing' if n == 1 else 'things'} would stop a run; see the lines that begin with fault")
    print_line("\nruns can go here")


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
