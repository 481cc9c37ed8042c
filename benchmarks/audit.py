"""Does the audit tell a confounded score from a sound one, and how often does it believe in nothing?

    python benchmarks/audit.py [--designs 3] [--nothing 20]         about 15 minutes on 2 quiet cores
    python benchmarks/audit.py --quick                              one `block`, one `nothing`: does it run? A minute

Four kinds of simulated data, each data set of a seed of its own. `random`: responses to pictures and slow drifts,
pictures in random order. `block`: the same, a class at a time. `drift`: blocks of classes and larger drifts, no
response at all. `nothing`: drifts and no response, in random order. On every one a model is trained as a user would,
its best pass chosen on validation, and audited. Printed are the verdicts, what every control measured, and of `nothing`
the share that is called supported, with its exact interval.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _results import tell

if TYPE_CHECKING:
    from eegvision.evaluate.audit import AuditResult

QUICK = {"designs": 1, "nothing": 1, "kinds": ["block", "nothing"], "passes": 4}
RIGHT = {"random": "supported"}  # all others: unsupported
SIZES: dict[str, Any] = {
    "n_subjects": 2, "n_classes": 8, "images_per_class": 24, "repetitions": 2, "blocks_per_class": 4,
    "n_chans": 16, "n_times": 88, "sfreq_hz": 200.0, "image_px": 64, "viewers": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "random": {"design": "random", "snr": 1.0},
    "block": {"design": "block", "snr": 1.0},
    "drift": {"design": "block", "snr": 0.0, "drift_uV": 12.0},
    "nothing": {"design": "random", "snr": 0.0},
}
SETTINGS: dict[str, Any] = {
    "data.val_fraction": 0.2, "eeg.encoder": "tsconv", "eeg.embed_dim": 64, "image.embed_dim": 64,
    "loss.name": "info_nce", "optim.lr": 2e-3, "train.batch_size": 32,
}  # fmt: skip


OWN_SETTINGS: dict[str, dict[str, Any]] = {"drift": {"data.normalise": "none"}}  # z-scores take most of the drift away


def audited(kind: str, seed: int, passes: int, seeds: int) -> AuditResult:
    """Simulate, train and audit; return the result."""
    import json

    from eegvision import grid, runs
    from eegvision.audits import Budget, record
    from eegvision.config import RunConfig
    from eegvision.ingest import assemble, simulate

    name = f"{kind}-{seed}"
    root = runs.named_folder("datasets", name)
    assemble.write(root, simulate.simulate(simulate.Simulation(seed=seed, **SIZES, **KINDS[kind]), name))
    own = {"data.dataset": name, "train.max_passes": passes}
    config = RunConfig().with_overrides(SETTINGS | OWN_SETTINGS.get(kind, {}) | own)
    folder = runs.named_folder("runs", name)
    with runs.sole_owner(folder):
        grid.fit_all([grid.Cell(key="model", config=config)], folder, say=lambda _: None)
    runs.write_whole(folder / "best.json", json.dumps({"trial": "model", "number": 1}))
    return record.run_audit(name, trial=None, budget=Budget(seeds=seeds, passes=passes), say=lambda _: None)


def main() -> None:
    """Audit all of them and print what came out."""
    options = argparse.ArgumentParser()
    options.add_argument("--designs", type=int, default=3, help="data sets of each design")
    options.add_argument("--nothing", type=int, default=20, help="data sets without a response")
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options.add_argument("--passes", type=int, default=10)
    options.add_argument("--seeds", type=int, default=1, help="seeds of every training of an audit")
    options.add_argument("--quick", action="store_true", help="at a size for a minute")
    asked = options.parse_args()
    if asked.quick:
        vars(asked).update(QUICK)
    os.environ["EEGVISION_HOME"] = tempfile.mkdtemp(prefix="eegvision-")

    from eegvision import cluster
    from eegvision.evaluate.statistics import proportion_interval

    cluster.connect()
    verdicts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for kind in asked.kinds:
        for seed in range(asked.nothing if kind == "nothing" else asked.designs):
            began = time.monotonic()
            result = audited(kind, seed, asked.passes, asked.seeds)
            verdicts[kind][result.verdict] += 1
            print(f"\n{kind} {seed}: {result.verdict.upper()} ({time.monotonic() - began:.0f} s)", flush=True)
            shown = result.controls if kind != "nothing" or result.verdict == "supported" else result.controls[:1]
            for control in shown:
                print(f"  {control.name:26} {control.verdict:13} {control.reason}", flush=True)
    print()
    for kind, counts in verdicts.items():
        print(f"{kind:8} {dict(counts)}")
    if "nothing" in asked.kinds:
        n = verdicts["nothing"]["supported"]
        low, high = proportion_interval(n, asked.nothing)
        print(f"nothing called supported: {n} of {asked.nothing} (95 % {low:.3f} to {high:.3f}; nominal 0.05)")
    print(f"in {Path(os.environ['EEGVISION_HOME'])}")
    n_right = sum(counts[RIGHT.get(kind, "unsupported")] for kind, counts in verdicts.items())
    n_all = sum(counts.total() for counts in verdicts.values())
    target = None if asked.quick else ">= 0.95"
    tell(f"right verdicts of {n_all} audits", [n_right / n_all], unit="share", target=target, peer="the truth planted")


if __name__ == "__main__":
    main()
