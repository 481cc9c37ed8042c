"""Run folders as sweeps, evaluations and audits leave them, with numbers drawn from a seed; imported as
`report.run_folders`."""

import json

import numpy as np
import pandas as pd

from eegvision import ledger
from eegvision.config import RunConfig
from eegvision.overrides import flatten
from eegvision.report import published
from eegvision.report.grid_tables import Cell, Table
from eegvision.vocab import home

CLASSES = ["disc", "star", "square", "ring", "flower", "cross", "wave", "heart"]
CATEGORIES = ["shape", "shape", "shape", "shape", "plant", "shape", "motion", "body"]
SUBJECTS = ["sub-01", "sub-02", "sub-03"]
DATASET = {"name": "demo", "fingerprint": "11565a2ea831", "grade": "green"}
ENVIRONMENT = {"python": "3.11.7", "torch": "2.14.1", "cpus": "2"}
CODE = "91248c52e940"


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def settings_of(generator, number):
    encoder = ("palazzo-gru", "palazzo-lstm", "tsconv")[number % 3]
    dim = int(generator.choice([32, 64, 128]))
    own = {"eeg.encoder": encoder, "eeg.embed_dim": dim, "image.embed_dim": dim}
    own["loss.name"] = str(generator.choice(["triplet", "info_nce", "siglip"]))
    own["optim.lr"] = float(10 ** generator.uniform(-3.5, -2.5))
    if encoder == "tsconv":
        own["eeg.dropout"] = float(generator.choice([0.1, 0.3, 0.5]))
    else:
        own["eeg.hidden"] = int(generator.choice([32, 64]))
    return own


def write_sweep(name="demo", n_trials=12, *, seed=0, metric="val/top1", n_images=30, is_searched=True):
    """Write a finished sweep; tsconv is the better encoder. Returns its folder."""
    generator = np.random.default_rng(seed)
    folder = home() / "runs" / name
    base = RunConfig().with_overrides({"train.metric": metric, "train.max_passes": 12, "train.batch_size": 64})
    space = {"space": "demo.py" if is_searched else None, "space.sha256": "5927fa9a2a2a" if is_searched else None}
    identity = flatten(base.to_dict()) | {"trials": n_trials, "search_seed": 0} | space
    write(folder / "sweep.json", identity | {"dataset.fingerprint": DATASET["fingerprint"]})
    for number in range(1, n_trials + 1):
        settings = settings_of(generator, number)
        write_trial(folder / "trials" / f"id{number:03d}", base, settings, number, generator, n_images)
    write(folder / "best.json", {"trial": "id003", "number": 3})
    write(folder / "environment.json", ENVIRONMENT)
    chance = {"val/top1": 1 / n_images, "val/top5": 5 / n_images, "val/class_top1": 1 / 8}
    pd.DataFrame([{f"chance {key}": level for key, level in chance.items()}]).to_csv(folder / "trials.csv")
    (folder / "spool").mkdir()
    (folder / "spool" / "events.jsonl").write_text(json.dumps({"do": "start", "tags": {"eegvision.code": CODE}}) + "\n")
    return folder


def write_trial(folder, base, settings, number, generator, n_images):
    is_good = settings["eeg.encoder"] == "tsconv"
    n_passes = 12 if is_good or number < 3 else 4
    write(folder / "trial.json", {"number": number, "suggested": settings})
    write(folder / "end.json", {"status": "finished" if n_passes == 12 else "stopped early", "message": ""})
    history = []
    for at in range(n_passes):
        rise = (0.42 if is_good else 0.05) * (1 - np.exp(-at / 4)) + 0.02 * generator.random()
        top1 = float(np.clip(1 / n_images + rise, 0, 1))
        history.append(
            {
                "val/loss": 3.4 - 4 * rise, "val/top1": top1, "val/top5": min(1.0, 2.1 * top1 + 0.1),
                "val/class_top1": min(1.0, 1.5 * top1 + 0.1), "train/loss": 3.4 - 5 * rise, "seconds": 2.0,
            }
        )  # fmt: skip
    config = base.with_overrides(settings)
    write(folder / "last" / f"pass-{n_passes:06d}" / "state.json", {"config": config.to_dict(), "history": history})
    best = folder / "best" / f"pass-{n_passes:06d}"
    best.mkdir(parents=True)
    image_Q = np.repeat(np.arange(n_images), 6)
    hit_Q = generator.random(len(image_Q)) < max(done["val/top1"] for done in history)
    np.savez(
        best / "predictions.npz", image_id_Q=image_Q.astype(str), label_Q=image_Q % 8,
        rank_Q=np.where(hit_Q, 1.0, generator.integers(2, n_images, len(image_Q))),
    )  # fmt: skip


def score(generator, metric, chance, level, n, n_images=30, **more):
    value = float(np.clip(level + 0.04 * generator.normal(), 0, 1))
    half = 1.96 * (value * (1 - value) / n_images) ** 0.5
    return {
        "metric": metric, "value": value, "low": max(0.0, value - half), "high": min(1.0, value + half),
        "chance": chance, "significance_line": chance + 0.1, "p": 0.0001 if value > chance + 0.1 else 0.3,
        "n_queries": n, "n_images": n_images, "split": "by-image", "held_out": None, "n_channels": 32,
        "window_s": None, "band_hz": None, "control": None, "arm": "joint", "group_name": "all", "group": "all",
        "repetitions": 1, **more,
    }  # fmt: skip


def write_evaluation(folder, trial_id, *, protocol="zero-shot", side="test", level=0.4, seed=0, opening=None, **more):
    """Write one evaluation of a trial of a sweep, with scores by subject, class and category."""
    generator = np.random.default_rng(seed)
    config = json.loads(next((folder / "trials" / trial_id / "last").glob("*/state.json")).read_text())["config"]
    rows, curves = [], []
    groups = [("all", ["all"]), ("subject", SUBJECTS), ("class", CLASSES), ("category", sorted(set(CATEGORIES)))]
    for group_name, names in groups:
        for group in names:
            where = {"group_name": group_name, "group": group}
            n = {"all": 540, "subject": 180}.get(group_name, 60)
            if protocol == "probe":
                for what in ("eeg", "image"):
                    given = {**where, "probe_side": what, "gallery": None, "normalise": None, "transductive": "none"}
                    reached = level + 0.2 + (0.1 if what == "image" else 0)
                    rows.append(score(generator, "accuracy", 1 / 8, reached, n, n_gallery=None, **given))
                continue
            given = {**where, "gallery": "exact-image", "normalise": "both", "transductive": "none", "n_gallery": 30}
            rows += [score(generator, f"top-{k}", k / 30, level + 0.1 * (k - 1), n, **given, **more) for k in (1, 3, 5)]
            rows.append(
                score(generator, "mAP", 0.133, level + 0.1, n, **given) | {"significance_line": None, "p": None}
            )
            rank = {"value": 2.0, "chance": 15.5, "low": None, "high": None, "significance_line": None, "p": None}
            rows.append(score(generator, "median rank", 0.1, 0.1, n, **given) | rank)
    if protocol == "zero-shot":
        for subject in SUBJECTS:
            for count in (1, 2, 4, 10):
                accuracy = float(np.clip(level * count**0.3 + 0.03 * generator.normal(), 0, 1))
                curves.append(
                    {
                        "subject": subject, "repetitions": count, "metric": "top-1", "accuracy": accuracy,
                        "low": max(0.0, accuracy - 0.1), "high": min(1.0, accuracy + 0.1), "null_mean": 1 / 30,
                        "null_high": 0.1, "chance": 1 / 30, "n_images": 30, "n_gallery": 30,
                    }
                )  # fmt: skip
    count_KK = generator.poisson(2, (8, 8)) + np.diag(generator.poisson(25, 8))
    write(
        folder / "evaluations" / f"{trial_id}.{protocol}.{side}.{seed}.json",
        {
            "protocol": protocol, "run": folder.name, "trial": trial_id, "checkpoint": "x", "side": side,
            "model_sha256": f"{trial_id}{folder.name}", "config": config, "dataset": DATASET,
            "fingerprint": RunConfig.from_dict(config).fingerprint(), "selection": "best pass by val/top1",
            "opening": opening, "seed": 0, "code": CODE, "time": "2026-01-01T00:00:00+0000", "rows": rows,
            "curves": curves, "predictions": None,
            "confusion": {"classes": CLASSES, "categories": CATEGORIES, "count_KK": count_KK.tolist()},
        },
    )  # fmt: skip


CONTROLS = {
    "order": ("Order of presentation", "The class cannot be told from the time of a presentation."),
    "random-codebook": ("Random codebook", "Random vectors in place of picture features are learned as well."),
    "pre-stimulus": ("Before the stimulus", "The time before the picture tells nothing of it."),
    "selection-gap": ("Selection gap", "Chosen by validation or on the test set: 1.2 points apart."),
}


def write_audit(folder, verdict="supported"):
    """Write an audit; an unsupported one fails the control of time before the stimulus."""
    controls = []
    for name, (title, reason) in CONTROLS.items():
        own = "unsupported" if verdict == "unsupported" and name == "pre-stimulus" else "supported"
        if verdict == "not testable" and name == "order":
            own, reason = "not testable", "The order of presentation is not recorded."
        if own == "unsupported":
            reason = "The time before the picture alone names it: drifts, not vision."
        controls.append(
            {
                "name": name, "title": title, "verdict": own, "reason": reason, "value": 0.31, "low": 0.22,
                "high": 0.4, "chance": 0.033, "p": 0.0004, "n": 540, "source": "Li et al. 2021",
            }
        )  # fmt: skip
    write(
        folder / "audit.json",
        {"verdict": verdict, "claim": "EEG names the picture seen", "metric": "top-1", "seeds": [0, 1, 2],
         "dataset": DATASET, "fingerprint": "abc", "time": "2026-01-01", "code": CODE, "controls": controls},
    )  # fmt: skip


def palazzo_table():
    """Table I with scores of ours near the published ones."""
    generator = np.random.default_rng(0)
    rows = {}
    for (image, eeg), pair in published.PALAZZO_I.items():
        cells = []
        for value in (pair.eeg, pair.image, pair.average):
            own = float(value - 0.3 + 0.03 * generator.normal())
            cells.append(
                Cell(
                    value=own, low=own - 0.04, high=own + 0.04, n_seeds=3, sd=0.012, published=value, chance=1 / 40,
                    line=0.0425,
                )
            )  # fmt: skip
        rows[f"{image} + {eeg.removeprefix('palazzo-').upper()}"] = tuple(cells)
    return Table(
        title="Palazzo, table I: encoder pairs, trained jointly",
        caption="Softmax on frozen embeddings, 40 classes, test pictures of the split by-image.",
        columns=("EEG", "image", "average"),
        rows=rows,
        notes=(published.PALAZZO_WARNING,),
        source=published.PALAZZO.citation,
    )


def write_tables(folder):
    write(folder / "tables.json", {"tables": [palazzo_table().to_dict()]})


def open_test(run, *trials, purpose="scores"):
    """Write an opening of the test set into the ledger."""
    models = [{"run": run, "trial": t, "fingerprint": "f" + t, "model_sha256": f"{t}{run}"} for t in trials]
    ledger.open_test("demo", "t" * 64, study=run, models=models, purpose=purpose)


def write_everything(name="demo", verdict="supported", n_trials=18, seed=0):
    """Write a run with every piece a report knows."""
    folder = write_sweep(name, n_trials, seed=seed)
    for at, trial_id in enumerate(("id003", "id006", "id009")[: n_trials // 3]):
        write_evaluation(folder, trial_id, seed=at, level=0.45 - 0.1 * at, opening={"number": 1, "of": 1, "line": 1})
    write_evaluation(folder, "id003", protocol="probe", seed=7, opening={"number": 1, "of": 1, "line": 1})
    write_evaluation(folder, "id003", seed=9, side="val")
    write_audit(folder, verdict)
    write_tables(folder)
    open_test(name, "id003", "id006", "id009")
    return folder
