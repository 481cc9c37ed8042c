"""A 64-trial sweep on frozen image features through `jobs/sweep.py`, against the same loop written plainly.

    python benchmarks/frozen_sweep.py [--trials 64] [--passes 8] [--pairs 1]       about 45 minutes a pair on 2 cores
    python benchmarks/frozen_sweep.py --quick         8 trials of one pass, where fixed costs are most; about a minute

Plainly means what a lab scripts without us: arrays in memory, the features made once and saved, a loop over the
configurations in one process with all threads, a DataLoader, TSConv as a `Sequential`, validation after every epoch
and the best weights kept. No Ray, tracking, checkpoints, tables or figures. Both take the same optimiser steps; the
sweep is run once without early stopping (the same work), and, with more than three passes, once as it comes (ASHA).
Times are of whole processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import tell

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"trials": 8, "passes": 1, "pairs": 1}
BASE = {
    "eeg.encoder": "tsconv",
    "image.encoder": "small",
    "image.frozen": True,
    "loss.name": "info_nce",
    "optim.name": "adamw",
    "train.batch_size": 64,
}
SPACE = """
BASE = {base}
POINTS = {points}

def space(trial):
    trial.suggest_float("optim.lr", 1e-4, 1e-1, log=True)
"""
EXPORT = """
import sys
import numpy as np
from eegvision import features, stream
from eegvision.config import RunConfig
import json
config = RunConfig().with_overrides(json.loads(sys.argv[1]))
store = stream.load_store(config.data, None)
np.savez(
    sys.argv[2], eeg=store.eeg_NCT, image=store.image_N, feature=features.image_features(config),
    train=store.split.rows["train"], val=store.split.rows["val"],
)
"""
PLAIN = """
import copy, json, sys
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

arrays = np.load(sys.argv[1])
rates, passes, batch_size = json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
eeg = torch.from_numpy(arrays["eeg"])
image = torch.from_numpy(arrays["image"])
feature = torch.from_numpy(np.array(arrays["feature"]))
train, val = torch.from_numpy(arrays["train"]), torch.from_numpy(arrays["val"])


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def tsconv(n_chans, n_times):
    net = nn.Sequential(
        nn.Conv2d(1, 40, (1, 25)), nn.AvgPool2d((1, 51), (1, 5)), nn.BatchNorm2d(40), nn.ELU(),
        nn.Conv2d(40, 40, (n_chans, 1)), nn.BatchNorm2d(40), nn.ELU(), nn.Dropout(0.5),
        nn.Conv2d(40, 40, 1), nn.Flatten(),
    )
    size = net(torch.zeros(1, 1, n_chans, n_times)).shape[1]
    inner = nn.Sequential(nn.GELU(), nn.Linear(128, 128), nn.Dropout(0.5))
    return nn.Sequential(net, nn.Linear(size, 128), Residual(inner), nn.LayerNorm(128))


loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(eeg[train], image[train]), batch_size, shuffle=True, drop_last=True
)
gallery, target = torch.unique(image[val], return_inverse=True)
best = {}
for rate in rates:
    torch.manual_seed(0)
    encoder, projector = tsconv(*eeg.shape[1:]), nn.Linear(feature.shape[1], 128)
    scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimiser = torch.optim.AdamW([*encoder.parameters(), *projector.parameters(), scale], lr=rate, weight_decay=0.0)
    top = 0.0
    for _ in range(passes):
        encoder.train()
        for eeg_b, image_b in loader:
            a = F.normalize(encoder(eeg_b[:, None]), dim=1)
            b = F.normalize(projector(feature[image_b]), dim=1)
            same = (image_b[:, None] == image_b) & ~torch.eye(len(image_b), dtype=torch.bool)
            logits = (scale.exp() * a @ b.T).masked_fill(same, -torch.inf)
            own = torch.arange(len(a))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        encoder.eval()
        with torch.no_grad():
            a = torch.cat([F.normalize(encoder(part[:, None]), dim=1) for part in eeg[val].split(256)])
            b = F.normalize(projector(feature[gallery]), dim=1)
            score = float(((a @ b.T).argmax(1) == target).float().mean())
        if score >= top:
            top, kept = score, copy.deepcopy(encoder.state_dict())
    best[rate] = top
print(json.dumps(sorted(best.items(), key=lambda item: -item[1])[:3]))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "EEGVISION_"))}
    return kept | {"EEGVISION_HOME": str(home)} | more


def timed(command: list[str], home: Path) -> tuple[float, str]:
    """Run a command and return its seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment(home), check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    """Alternate the loop and the sweeps; print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    found: dict[str, list[float]] = {}
    rates = [round(1e-4 * 1e3 ** (n / max(1, options.trials - 1)), 8) for n in range(options.trials)]
    base = BASE | {"train.max_passes": options.passes}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        timed([sys.executable, "jobs/ingest.py", "simulated", "--out", "demo"], home)
        arrays, space = home / "arrays.npz", home / "space.py"
        space.write_text(SPACE.format(base=base, points=[{"optim.lr": rate} for rate in rates]))
        timed([sys.executable, "-c", EXPORT, json.dumps(base), str(arrays)], home)
        for pair in range(options.pairs):
            plain = [sys.executable, "-c", PLAIN, str(arrays), json.dumps(rates), str(options.passes), "64"]
            plain_s, printed = timed(plain, home)
            print(f"pair {pair + 1}: plain loop {plain_s:.1f} s; best {printed.strip()}", flush=True)
            kinds = {"same work": options.passes} | ({"as it comes": 3} if options.passes > 3 else {})
            for kind, least in kinds.items():
                name = f"{kind.replace(' ', '-')}-{pair}"
                flags = ["--space", str(space), "--name", name, "--trials", str(options.trials)]
                sweep_s, printed = timed([sys.executable, "jobs/sweep.py", *flags, "--min-passes", str(least)], home)
                found.setdefault(kind, []).append(plain_s / sweep_s)
                first = next(line for line in printed.splitlines() if line.strip().startswith("1 "))
                print(
                    f"  sweep, {kind}: {sweep_s:.1f} s, loop / sweep {plain_s / sweep_s:.2f}; {first.strip()}",
                    flush=True,
                )
    target = None if options.quick else ">= 1"
    for kind, ratios in found.items():
        what = f"sweep of {options.trials} trials x {options.passes} passes on frozen features, {kind}"
        tell(what, ratios, target=target, peer="the plain loop in one process")


if __name__ == "__main__":
    main()
