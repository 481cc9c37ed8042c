"""Palazzo et al., Table I: the eight encoder pairs as published, then a free search around them.

    python jobs/sweep.py --dataset NAME --space search_spaces/palazzo.py --trials 64 --gpus-per-trial 1

Published joint figures (mean of EEG and image accuracy, block-designed data): 73.6 % (AlexNet, GRU) to 92.8 %
(DenseNet-161, GRU). Image encoders start from ImageNet weights and are fine-tuned: about 4 GPU hours per trial.
"""

BASE = {
    "train.max_passes": 100,
    "train.batch_size": 16,
    "data.crops": "ten",
    "image.encoder": "alexnet",
    "image.weights": "imagenet",
}

_AS_PUBLISHED = {
    "eeg.embed_dim": 128,
    "eeg.channels": "shared",
    "loss.name": "triplet",
    "optim.name": "adam",
    "optim.lr": 1e-3,
}

POINTS = [
    {"image.encoder": image, "eeg.encoder": eeg, **_AS_PUBLISHED}
    for image in ("inception_v3", "resnet101", "densenet161", "alexnet")
    for eeg in ("palazzo-lstm", "palazzo-gru")
]


def space(trial):
    """Suggest both encoders, the embedding size D in 32..512, the loss and the optimiser."""
    fixed = {"image.embed_dim": trial.suggest_categorical("eeg.embed_dim", [32, 64, 128, 256, 512])}
    trial.suggest_categorical("image.encoder", ["inception_v3", "resnet101", "densenet161", "alexnet"])
    encoder = trial.suggest_categorical("eeg.encoder", ["palazzo-lstm", "palazzo-gru", "tsconv"])
    if encoder != "tsconv":
        trial.suggest_categorical("eeg.channels", ["shared", "mixed"])
    loss = trial.suggest_categorical("loss.name", ["triplet", "info_nce", "siglip"])
    if loss != "triplet":
        trial.suggest_float("loss.temperature", 0.02, 0.2, log=True)
    optimiser = trial.suggest_categorical("optim.name", ["adam", "adamw"])
    trial.suggest_float("optim.lr", 1e-5, 3e-3, log=True)
    if optimiser == "adamw":
        trial.suggest_float("optim.weight_decay", 1e-5, 1e-1, log=True)
    return fixed
