"""eegvision.features over Ray tasks: the same bytes as this process makes."""

import shutil

import numpy as np
import pytest

from eegvision import features
from eegvision.config import RunConfig
from eegvision.features import cache
from eegvision.vocab import InputError


@pytest.fixture
def base(tiny_dataset, tmp_path, monkeypatch) -> RunConfig:
    """A run on frozen features, with an empty cache."""
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    frozen = {"image.encoder": "small", "image.frozen": True, "image.size_px": 32}
    return RunConfig().with_overrides({"data.dataset": str(tiny_dataset)} | frozen)


@pytest.mark.usefixtures("ray_local")
def test_the_cluster_makes_what_this_process_makes(base, tmp_path, monkeypatch):
    configs = [base, base.with_overrides({"image.layer": "0.75"})]
    alone = [np.array(features.image_features(config)) for config in configs]
    shutil.rmtree(tmp_path / "features")
    said: list[str] = []
    features.warm(configs, say=said.append)
    assert any("making features of 40 pictures: small, last, 0.75" in line for line in said)
    monkeypatch.setattr(cache, "build_backbone", None)  # nothing is left to compute here
    for config, array in zip(configs, alone, strict=True):
        np.testing.assert_array_equal(features.image_features(config), array)


@pytest.mark.usefixtures("ray_local")
def test_a_fault_in_a_task_reaches_the_driver_in_words(base):
    absent = "/absent/weights.pth"
    with pytest.raises(InputError, match=r"image.weights '/absent/weights.pth' is not a file"):
        features.warm([base.with_overrides({"image.weights": absent})], say=lambda _: None)
