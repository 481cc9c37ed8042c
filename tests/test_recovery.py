"""The whole path on simulated recordings: what was planted is found in held-out pictures, and nothing else is."""

import dataclasses

import numpy as np
import pytest
import torch

from eegvision import checkpoint, distributed, stream, train
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.evaluate.statistics import permutation_p
from eegvision.ingest import assemble, simulate

CONFIG = RunConfig().with_overrides(
    {
        "data.test_fraction": 0.2,
        "eeg.encoder": "tsconv",
        "eeg.dropout": 0.2,
        "image.size_px": 32,
        "loss.name": "info_nce",
        "optim.lr": 2e-3,
        "train.batch_size": 32,
        "train.max_passes": 12,
    }
)
SIMULATION = dataclasses.replace(
    simulate.PRESETS["tiny"], n_classes=6, images_per_class=20, n_chans=32, artefact_rate=0.0, bad_channel_rate=0.0
)


def held_out_top5(root, folder, seed: int) -> tuple[float, float]:
    """Train on a data set; return top-5 accuracy on its test pictures and its permutation p."""
    config = CONFIG.with_overrides({"data.dataset": str(root), "seed": seed})
    store = stream.load_store(config.data, 32)
    torch.manual_seed(seed)
    model = build_joint(config, store.manifest.n_chans, store.manifest.n_times, store.manifest.sfreq_hz)
    training, validation = distributed.batches(config, store)
    train.fit(config, model, training, validation, device="cpu", folder=folder, report=lambda _: None)

    test = stream.Batches(
        store, "test", config=config.data, size_px=32, batch_size=32, seed=0, training=False
    )  # the one opening
    model.eval()
    with torch.no_grad():
        batches = list(test.passes(1))
        eeg_QD = torch.cat([model.encode_eeg(batch.eeg_BCT) for batch in batches])
        views = list(test.images(32))
        image_MD = torch.cat([model.encode_image(image_B3HW) for image_B3HW, _ in views])
    number_M = torch.cat([number for _, number in views]).numpy()
    target_Q = np.searchsorted(number_M, torch.cat([batch.image_B for batch in batches]).numpy())
    return permutation_p((eeg_QD @ image_MD.T).numpy(), target_Q, 5, n_permutations=2000)


@pytest.mark.parametrize(("snr", "is_found"), [(0.8, True), (0.0, False)])
def test_planted_structure_is_found_in_held_out_pictures_and_noise_is_not(tmp_path, snr, is_found):
    options = dataclasses.replace(SIMULATION, snr=snr)
    assemble.write(tmp_path / "data", simulate.simulate(options, "data"))
    observed, p = held_out_top5(tmp_path / "data", tmp_path / "run", seed=0)
    chance = 5 / 24
    if is_found:
        assert p < 0.01
        assert observed > 1.5 * chance
    else:
        assert p > 0.01
        assert abs(observed - chance) < 0.5 * chance


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [("simple-conv", {"eeg.hidden": 16}), ("atm-s", {"eeg.subjects": "token"}), ("tsconv", {"eeg.subjects": "layer"})],
)
def test_encoders_that_know_places_or_subjects_are_trained_and_loaded_with_them(
    tiny_dataset, tmp_path, encoder, settings
):
    config = RunConfig().with_overrides(
        {"data.dataset": str(tiny_dataset), "data.val_fraction": 0.2, "eeg.encoder": encoder, "image.size_px": 16,
         "eeg.embed_dim": 8, "image.embed_dim": 8, "train.max_passes": 1, "train.batch_size": 16, **settings}
    )  # fmt: skip
    distributed.fit_here(config, tmp_path, lambda _: None)
    path = checkpoint.latest(tmp_path / "best")
    assert path is not None
    model = JointModel.load(path)
    assert len(model.data["positions_m"]) == 16
    assert model.data["subjects"] == (["sub-01", "sub-02"] if "eeg.subjects" in settings else [])
    eeg_BCT = torch.randn(2, 16, 88)
    one, other = (model.encode_eeg(eeg_BCT, model.subject_rows([name] * 2)) for name in ("sub-01", "sub-02"))
    assert torch.equal(one, other) == ("eeg.subjects" not in settings)


def test_each_encoder_alone_finds_the_classes_of_held_out_pictures(tmp_path):
    options = dataclasses.replace(SIMULATION, n_chans=16, snr=0.8)
    assemble.write(tmp_path / "data", simulate.simulate(options, "data"))
    common = {
        "data.dataset": str(tmp_path / "data"),
        "data.val_fraction": 0.2,
        "optim.lr": 2e-3,
        "train.batch_size": 32,
        "train.max_passes": 8,
    }
    sides = {
        "eeg-classes": {"eeg.encoder": "tsconv", "eeg.dropout": 0.2, "eeg.filters": 16, "eeg.embed_dim": 32},
        "image-classes": {"image.size_px": 32, "image.embed_dim": 32},
    }
    for name, own in sides.items():
        config = RunConfig().with_overrides({"loss.name": name, **common, **own})
        result = distributed.fit_here(config, tmp_path / name, lambda _: None)
        # Chance 1/6; 24 pictures, so by guessing P(Binomial(24, 1/6) >= 11) < .001.
        assert result.best_metrics["val/accuracy"] > 0.45, name
