"""Demo: small encoders of both papers and three losses, a minute per trial on one core.

python jobs/sweep.py --space search_spaces/demo.py --trials 12
"""

BASE = {
    "train.max_passes": 12,
    "train.batch_size": 64,
    "optim.name": "adamw",
    "optim.schedule": "cosine",
    "optim.warmup": 0.1,
    "optim.clip_norm": 1.0,
    "image.encoder": "small",
}

# Known configurations go first: Palazzo's objective and encoder, then NICE's.
POINTS = [
    {"eeg.encoder": "palazzo-gru", "eeg.hidden": 64, "eeg.embed_dim": 128, "loss.name": "triplet", "optim.lr": 1e-3},
    {"eeg.encoder": "tsconv", "eeg.dropout": 0.5, "eeg.embed_dim": 128, "loss.name": "info_nce", "optim.lr": 1e-3},
]


def space(trial):
    """Suggest encoder, embedding size, loss and learning rate; what is returned is set without being searched."""
    fixed = {"image.embed_dim": trial.suggest_categorical("eeg.embed_dim", [32, 64, 128])}
    encoder = trial.suggest_categorical("eeg.encoder", ["palazzo-gru", "palazzo-lstm", "tsconv"])
    if encoder == "tsconv":
        trial.suggest_categorical("eeg.dropout", [0.1, 0.3, 0.5])
    else:
        trial.suggest_categorical("eeg.hidden", [32, 64, 128])
        fixed["eeg.channels"] = "mixed"
    trial.suggest_categorical("loss.name", ["triplet", "info_nce", "siglip"])
    trial.suggest_float("optim.lr", 3e-4, 3e-3, log=True)
    return fixed
