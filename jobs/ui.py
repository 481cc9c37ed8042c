"""Open MLflow on what was run: prints the address and serves until Ctrl-C.

What ended runs could not ship, because MLflow was down, is shipped first.

python jobs/ui.py
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import _checkout  # noqa: F401  (before eegvision)

from eegvision.cli import print_line, run_job
from eegvision.vocab import InputError, home


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serve MLflow's pages for the runs in EEGVISION_HOME, on this machine only."""

    port: int = 5000
    """Port to serve on."""


def main(options: Options) -> None:
    """Ship what waited in ended runs, and become the MLflow server."""
    from eegvision import tracking

    for spool in sorted((home() / "runs").glob("*/spool")):
        if said := tracking.ship_rest(spool, spool.parent.name):
            print_line(said)
    if remote := os.environ.get("MLFLOW_TRACKING_URI"):
        print_line(f"runs are tracked at {tracking.without_password(remote)}: open it in a browser")
        return
    database = home() / "mlflow.db"
    if not database.exists():
        raise InputError(f"nothing was tracked yet in {home()}; run `make sweep` first")
    print_line(f"MLflow: http://127.0.0.1:{options.port}/#/experiments?workflowType=machine_learning (Ctrl-C ends it)")
    mlflow = str(Path(sys.executable).parent / "mlflow")
    store, artifacts = f"sqlite:///{database}", str(home() / "mlartifacts")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.execv(
        mlflow,
        [mlflow, "server", f"--backend-store-uri={store}", f"--artifacts-destination={artifacts}",
         "--host=127.0.0.1", f"--port={options.port}", "--workers=1"],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
