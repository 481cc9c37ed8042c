"""Makes the table that searches are replayed on: every configuration of a grid, trained, and its score after each pass.

    python benchmarks/search_table.py [--folder /tmp/search_table]                     about 40 minutes on one core
    python benchmarks/search_table.py --quick                                          a few configurations, a minute

The data are simulated (`DATA`), the trainings real: the project's own loop on the grid that `SPACE` spans, a search
space file like those of `search_spaces/`, of which the two floats are tabulated at the middle of equal shares of their
logarithm (`SNAP`). Every configuration is trained with seed 0, which is what a search is shown. The `--best` ones by
that score and `--others` of the rest are trained with two more seeds, so that the best of the grid is known beyond the
luck of one seed, and the noise between seeds as well. There is no peer, and no limit: this is the ground that
`search.py` stands on. Each training adds a row to `rows.jsonl` in the folder, and the same command goes on where it was
interrupted; the last row writes `search_table.json.gz` beside this file (another place: `--out`).

A configuration's score after a pass is the best `val/top1` so far, which is what a sweep goes by, averaged over its
seeds. Times are processor seconds per pass on one thread.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("search_table.json.gz")
DATA = {"n-subjects": 1, "n-classes": 20, "images-per-class": 45, "repetitions": 1, "snr": 3}
"""What is simulated, beyond the preset `tiny`: 900 segments of 16 channels x 88 samples, each of another picture."""
SPACE = '''"""Encoder, embedding size, loss with its margin or temperature, and learning rate."""

BASE = {
    "data.val_fraction": 0.45,
    "data.test_fraction": 0.05,
    "train.max_passes": 27,
    "train.batch_size": 64,
    "optim.name": "adamw",
    "optim.schedule": "cosine",
    "optim.warmup": 0.1,
    "optim.clip_norm": 1.0,
    "image.encoder": "small",
    "image.frozen": True,
}

# Known configurations go first: Palazzo's objective and learning rate, then NICE's.
POINTS = [
    {"eeg.embed_dim": 128, "eeg.encoder": "tsconv", "loss.name": "triplet", "loss.margin": 0.0, "optim.lr": 1e-3},
    {
        "eeg.embed_dim": 128, "eeg.encoder": "tsconv", "loss.name": "info_nce", "loss.temperature": 0.07,
        "optim.lr": 2e-4,
    },
]


def space(trial):
    fixed = {"image.embed_dim": trial.suggest_categorical("eeg.embed_dim", [16, 128])}
    trial.suggest_categorical("eeg.encoder", ["tsconv", "nice-shallow", "eeg-project"])
    loss = trial.suggest_categorical("loss.name", ["triplet", "info_nce", "siglip"])
    if loss == "triplet":
        trial.suggest_categorical("loss.margin", [0.0, 0.5])
    else:
        trial.suggest_float("loss.temperature", 0.01, 1.0, log=True)
        fixed["loss.learn_temperature"] = False
    trial.suggest_float("optim.lr", 1e-5, 3e-2, log=True)
    return fixed
'''
SNAP = {
    "loss.temperature": [round(0.01 * 100 ** ((i + 0.5) / 4), 6) for i in range(4)],
    "optim.lr": [round(1e-5 * 3000 ** ((i + 0.5) / 6), 8) for i in range(6)],
}


def grid() -> list[dict[str, Any]]:
    """Return the settings of every configuration that the space can suggest, floats snapped."""
    losses: list[dict[str, Any]] = [{"loss.name": "triplet", "loss.margin": margin} for margin in (0.0, 0.5)]
    losses += [
        {"loss.name": name, "loss.temperature": value, "loss.learn_temperature": False}
        for name in ("info_nce", "siglip")
        for value in SNAP["loss.temperature"]
    ]
    axes = itertools.product([16, 128], ["tsconv", "nice-shallow", "eeg-project"], losses, SNAP["optim.lr"])
    return [
        {"eeg.embed_dim": dim, "image.embed_dim": dim, "eeg.encoder": encoder, **loss, "optim.lr": lr}
        for dim, encoder, loss, lr in axes
    ]


class Trainer:
    """Trains configurations one after the other on data that are read once."""

    def __init__(self, base: dict[str, Any]) -> None:
        import torch

        from eegvision import stream
        from eegvision.config import RunConfig

        torch.set_num_threads(1)
        self.base = RunConfig().with_overrides(base)
        self.store = stream.load_store(self.base.data, None)
        self.n_queries = len(self.store.split.rows["val"])
        self.n_images = len({*self.store.image_N[self.store.split.rows["val"]].tolist()})
        self.fit(
            {"eeg.encoder": "eeg-project", "train.max_passes": 1}, seed=0
        )  # imports and features are nobody's time

    def fit(self, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the number of right answers after each pass, none once it has diverged, and seconds per pass."""
        import torch

        from eegvision import train
        from eegvision.distributed import batches
        from eegvision.encoders.joint import build_joint

        began = time.process_time()
        config = self.base.with_overrides(settings | {"seed": seed})
        train_batches, val_batches = batches(config, self.store)
        torch.manual_seed(config.seed)
        manifest = self.store.manifest
        model = build_joint(
            config,
            manifest.n_chans,
            manifest.n_times,
            manifest.sfreq_hz,
            positions_m=manifest.montage.positions_m,
            n_features=train_batches.n_features,
            n_classes=len(manifest.classes),
        )
        hits: list[int] = []
        with tempfile.TemporaryDirectory() as place, suppress(train.TrainingDiverged):
            train.fit(
                config,
                model,
                train_batches,
                val_batches,
                device="cpu",
                folder=Path(place) / "run",
                report=lambda done: hits.append(round(done.metrics["val/top1"] * self.n_queries)),
            )
        seconds = (time.process_time() - began) / max(1, len(hits))
        hits += [0] * (config.train.max_passes - len(hits))
        return {"hits": hits, "seconds": round(seconds, 4)}


def wanted(
    configurations: list[dict[str, Any]], hits: dict[tuple[int, int], list[int]], n_best: int, n_others: int
) -> list[tuple[int, int]]:
    """Return what is left to train, as (configuration, seed): all with seed 0, then two more seeds of some."""
    first = [(index, 0) for index in range(len(configurations)) if (index, 0) not in hits]
    if first:
        random.Random(0).shuffle(first)  # what is there after an interruption is a fair sample
        return first
    order = sorted(range(len(configurations)), key=lambda index: -max(hits[index, 0]))
    repeated = order[:n_best] + random.Random(1).sample(order[n_best:], min(n_others, len(order[n_best:])))
    return [(index, seed) for index in repeated for seed in (1, 2) if (index, seed) not in hits]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are whole."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def fill(path: Path, configurations: list[dict[str, Any]], trainer: Trainer, n_best: int, n_others: int) -> None:
    """Train what is missing, a row at a time."""
    hits = {(row["configuration"], row["seed"]): row["hits"] for row in read_rows(path)}
    while todo := wanted(configurations, hits, n_best, n_others):
        for number, (index, seed) in enumerate(todo, start=1):
            row = {"configuration": index, "seed": seed, **trainer.fit(configurations[index], seed)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            hits[index, seed] = row["hits"]
            if sys.stderr.isatty() or number % 20 == 0:
                print(f"{number} of {len(todo)}", file=sys.stderr, flush=True)


def table_of(rows: list[dict[str, Any]], configurations: list[dict[str, Any]], trainer: Trainer) -> dict[str, Any]:
    """Gather all rows into what is stored."""
    import torch

    hits: list[dict[str, list[int]]] = [{} for _ in configurations]
    seconds: list[list[float]] = [[] for _ in configurations]
    for row in rows:
        hits[row["configuration"]][str(row["seed"])] = row["hits"]
        seconds[row["configuration"]].append(row["seconds"])
    return {
        "data": DATA,
        "space": SPACE,
        "snap": SNAP,
        "metric": "val/top1",
        "n_queries": trainer.n_queries,
        "n_images": trainer.n_images,
        "torch": torch.__version__,
        "configurations": configurations,
        "hits": hits,
        "seconds": [round(statistics.mean(values), 4) for values in seconds],
    }


def summary(table: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Return a markdown table of what the grid looks like, and the shares that lie near the best."""
    scores = [statistics.mean(max(curve) / table["n_queries"] for curve in seeds.values()) for seeds in table["hits"]]
    pairs = [
        statistics.variance(max(curve) / table["n_queries"] for curve in seeds.values())
        for seeds in table["hits"]
        if len(seeds) > 1
    ]
    noise = statistics.mean(pairs) ** 0.5 if pairs else 0.0
    best, middle = max(scores), statistics.median(scores)
    near = {f"{times:g}": sum(score >= best - times * noise for score in scores) for times in (0, 1, 2)}
    n_trainings = sum(map(len, table["hits"]))
    n_passes = len(table["hits"][0]["0"])
    core_s = sum(
        seconds * n_passes * len(seeds) for seconds, seeds in zip(table["seconds"], table["hits"], strict=True)
    )
    lines = [
        "| configurations | trainings | passes each | core minutes | best | median | worst | chance | sd of seeds |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| {len(scores)} | {n_trainings} | {n_passes} | {core_s / 60:.0f} | {best:.3f} | {middle:.3f} | "
        f"{min(scores):.3f} | {1 / table['n_images']:.3f} | {noise:.4f} |",
        "",
        f"Configurations within 0, 1 and 2 sd of the best: {near['0']}, {near['1']}, {near['2']} of {len(scores)}.",
    ]
    share = near["1"] / len(scores)
    return "\n".join(lines), {"share": share, "least": near["0"] / len(scores), "most": near["2"] / len(scores)}


def main() -> None:
    """Train the grid and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "search_table")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--best", type=int, default=40, help="configurations that get two more seeds")
    parser.add_argument("--others", type=int, default=20, help="of the rest, likewise")
    parser.add_argument("--quick", action="store_true", help="eight configurations, 9 passes; nothing is written")
    options = parser.parse_args()
    if options.quick:
        options.folder = Path(tempfile.mkdtemp(prefix="search_table_"))
    home = options.folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ |= {"EEGVISION_HOME": str(home), "OMP_NUM_THREADS": "1"}
    if not (home / "datasets/search/dataset.json").exists():
        flags = [word for name, value in DATA.items() for word in (f"--{name}", str(value))]
        ingest = [sys.executable, "jobs/ingest.py", "simulated", "--out", "search", "--preset", "tiny", *flags]
        subprocess.run(ingest, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    names: dict[str, Any] = {}
    exec(SPACE, names)
    configurations = grid()
    base = names["BASE"] | {"data.dataset": "search"}
    n_best, n_others = options.best, options.others
    if options.quick:
        configurations = random.Random(2).sample(configurations, 8)
        base, n_best, n_others = base | {"train.max_passes": 9}, 1, 1
    trainer = Trainer(base)
    fill(options.folder / "rows.jsonl", configurations, trainer, n_best, n_others)
    table = table_of(read_rows(options.folder / "rows.jsonl"), configurations, trainer)
    if not options.quick:
        options.out.write_bytes(gzip.compress(json.dumps(table).encode(), mtime=0))
    text, near = summary(table)
    print(text)
    result = {
        "what": "share of the grid within the noise of its best (0, 1 and 2 sd between training seeds)",
        "unit": "share",
        "min": round(near["least"], 4),
        "median": round(near["share"], 4),
        "max": round(near["most"], 4),
        "target": None,
        "peer": "none: the ground of search.py",
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
