"""A small sweep for the pods: what runs is the overlay `dev` with two small workers and a search that ends soon."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from cluster.lab import Lab
from eegvision import history
from eegvision.ingest import assemble, simulate
from k8s.pods import Object
from k8s.rendered import K8S, rendered

NAME = "sweep"
HOME = "/mnt/shared/eegvision"  # in the pods
SPACE = '''
"""Four learning rates."""
BASE = {{
    "data.crops": "centre", "data.val_fraction": 0.25, "eeg.encoder": "tsconv", "eeg.embed_dim": 16,
    "image.embed_dim": 16, "image.size_px": 32, "loss.name": "info_nce", "train.batch_size": 16,
    "train.max_passes": {passes}, "train.patience": {passes},
}}
POINTS = [{{"optim.lr": lr}} for lr in {rates}]

def space(trial):
    trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
'''


def overlay(folder: Path, *, trials: int, passes: int) -> list[Object]:
    """Render the overlay of a lab that tries the platform: `dev`, with what differs written as a lab would."""
    entrypoint = (
        f"python jobs/sweep.py --name {NAME} --dataset tiny --space {HOME}/space.py --trials {trials} "
        f"--min-passes {passes} --max-concurrent 2"
    )
    group = "/spec/rayClusterSpec/workerGroupSpecs/0"
    small = {"cpu": "1", "memory": "4Gi"}
    patch = [
        {"op": "replace", "path": "/spec/entrypoint", "value": entrypoint},
        *(
            {"op": "replace", "path": f"{group}/{name}", "value": 2}
            for name in ("replicas", "minReplicas", "maxReplicas")
        ),
        {
            "op": "replace",
            "path": f"{group}/template/spec/containers/0/resources",
            "value": {"requests": small, "limits": small},
        },
    ]
    folder.mkdir()
    lines = {
        "resources": [os.path.relpath(K8S / "overlays" / "dev", folder.resolve())],
        "patches": [{"target": {"kind": "RayJob", "name": NAME}, "patch": yaml.safe_dump(patch)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    return rendered(folder)


def furnish(lab: Lab, *, trials: int, passes: int) -> None:
    """Put the data set and the search space onto the shared volume."""
    home = lab.shared / "eegvision"
    home.mkdir(mode=0o700)
    assemble.write(home / "datasets" / "tiny", simulate.simulate(simulate.PRESETS["tiny"], "tiny"))
    rates = [round(1e-3 * (1 + number), 6) for number in range(trials)]
    (home / "space.py").write_text(SPACE.format(passes=passes, rates=rates))


def run_folder(lab: Lab) -> Path:
    """Return the sweep's folder as this machine sees it."""
    return lab.shared / "eegvision" / "runs" / NAME


def passes_made(lab: Lab) -> int:
    """Return how many passes the sweep's log holds."""
    return sum(event["do"] == "pass" for event in history.read(run_folder(lab)))


def ends(lab: Lab) -> dict[float, tuple[Any, ...]]:
    """Return status, score and best pass of every trial, by its learning rate.

    Not by number: of two trials that begin together, either may be the first.
    """
    log = history.read(run_folder(lab))
    rate = rate_of(log)
    last = {rate[event["id"]]: event for event in log if event["do"] == "end" and event["id"] in rate}
    return {key: (event["status"], event["score"], event["best_pass"]) for key, event in sorted(last.items())}


def best(lab: Lab) -> float:
    """Return the learning rate of the trial that was named the best."""
    named = json.loads((run_folder(lab) / "best.json").read_text())["trial"]
    return rate_of(history.read(run_folder(lab)))[named]


def rate_of(log: list[history.Event]) -> dict[str, float]:
    """Return the learning rate of every trial of a sweep's log."""
    return {event["id"]: event["suggested"]["optim.lr"] for event in log if event["do"] == "trial"}
