"""Everything that chooses a GPU where there is one, on a simulated one: the same numbers, every tensor in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision import cluster, distributed, fanout
from eegvision.analyses import suppression
from eegvision.analyses.suppression import Arithmetic, ClassLikelihood, Fast, Saliency, saliency_map
from eegvision.assess.embedding import embed, open_store
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.features import image_features
from eegvision.inspection import association, channel_tables, saliency_tables
from eegvision.inspection.channel_settings import ChannelSettings
from eegvision.inspection.channels import run_channels
from eegvision.inspection.feature_settings import AssociationSettings
from eegvision.inspection.saliency import run_saliency
from eegvision.inspection.saliency_settings import SaliencySettings
from eegvision.runs import home
from simulated_gpu import OnGpu, simulated_gpu

BASE: dict[str, Any] = {
    "data.dataset": "tiny", "data.val_fraction": 0.25, "data.test_fraction": 0.25, "eeg.encoder": "tsconv",
    "eeg.embed_dim": 16, "image.embed_dim": 16, "image.size_px": 32, "loss.name": "info_nce", "train.batch_size": 16,
    "train.max_passes": 2, "train.precision": "fp32",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("without_ray", "tiny_dataset")


def test_the_simulated_gpu_refuses_what_a_gpu_refuses():
    with simulated_gpu():
        there = torch.arange(3.0).to("cuda")
        assert isinstance(there, OnGpu)
        assert isinstance(torch.ones(3, device=there.device) * there, OnGpu)
        assert (there.device.type, (there + 1).device.type, there.cpu().device.type) == ("cuda", "cuda", "cpu")
        for meet in (
            lambda: there + torch.ones(3),
            lambda: torch.stack([torch.ones(3), there]),
            lambda: torch.ones(3)[there.long()],
            lambda: torch.nn.Linear(3, 2)(there),
        ):
            with pytest.raises(RuntimeError, match=r"on the (GPU|CPU)"):
                meet()
        with pytest.raises(TypeError, match="cuda:0 device type"):
            there.numpy()
        assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3]
        assert np.asarray(there.cpu()).sum() == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"data.residency": "device", "image.embed_dim": 24, "eeg.embed_dim": 24},
        {"data.residency": "host", "eeg.encoder": "palazzo-gru", "eeg.hidden": 16, "loss.name": "triplet"},
        {"data.residency": "stream", "eeg.encoder": "atm-s", "loss.name": "siglip"},
        {"data.storage": "float16", "eeg.encoder": "nice-ga", "loss.centre_weight": 0.1},
        {"image.encoder": "random-codebook", "image.size_px": None, "data.crops": "centre"},
    ],
    ids=["device", "host", "stream", "float16", "frozen"],
)
def test_a_gpu_trains_what_a_cpu_trains(tmp_path, monkeypatch, changes):
    encode, devices = JointModel.encode_eeg, set()

    def seen(self: JointModel, eeg: torch.Tensor, *more: Any) -> torch.Tensor:
        devices.add((eeg.device.type, next(self.parameters()).device.type))
        return encode(self, eeg, *more)

    monkeypatch.setattr(JointModel, "encode_eeg", seen)
    config = RunConfig().with_overrides(BASE | changes)
    expected = distributed.fit_here(config, folder_in(tmp_path, "cpu"), lambda _: None)
    devices.clear()
    folder = folder_in(tmp_path, "gpu")

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with simulated_gpu():
        with pytest.raises(KeyboardInterrupt):
            distributed.fit_here(config, folder, interrupt)
        found = distributed.fit_here(config, folder, lambda _: None)
    assert devices == {("cuda", "cuda")}
    for mine, theirs in zip(found.history, expected.history, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss", "val/top1"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_bf16_is_what_a_gpu_trains_in_unless_told_otherwise(tmp_path):
    losses = []
    for precision in ("fp32", "auto", "bf16"):
        config = RunConfig().with_overrides(BASE | {"train.precision": precision, "train.max_passes": 1})
        with simulated_gpu():
            (one,) = distributed.fit_here(config, folder_in(tmp_path, precision), lambda _: None).history
        losses.append(one["train/loss"])
    assert losses[1] == losses[2]
    assert 0 < abs(losses[1] / losses[0] - 1) < 0.05


def folder_in(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def both(work: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what `work` gives without a GPU and with one."""
    without = work()
    with simulated_gpu():
        return without, work()


def model_of(config: RunConfig) -> JointModel:
    torch.manual_seed(0)
    manifest = open_store(config, has_pictures=False).manifest
    return build_joint(config, manifest.n_chans, manifest.n_times, manifest.sfreq_hz).eval()


def test_a_side_is_embedded_alike():
    config = RunConfig().with_overrides(BASE)
    here, there = both(lambda: embed(model_of(config), open_store(config), "val"))
    np.testing.assert_allclose(there.eeg_ND, here.eeg_ND, atol=1e-6)
    np.testing.assert_allclose(there.image_MD, here.image_MD, atol=1e-6)


def test_features_are_made_alike():
    config = RunConfig().with_overrides(
        BASE | {"image.encoder": "resnet18", "image.frozen": True, "image.layer": "0.5", "image.weights": "none"}
    )

    def made() -> np.ndarray:
        shutil.rmtree(home() / "features", ignore_errors=True)
        return np.array(image_features(config, say=lambda _: None))

    here, there = both(made)
    np.testing.assert_allclose(there, here, rtol=1e-5)


@pytest.mark.parametrize("engine", ["exact", "short", "fast"])
def test_maps_are_alike(monkeypatch, engine):
    monkeypatch.setattr(suppression, "_CHEAP_FLOP", 0)  # a network this small gets every pixel otherwise
    config = RunConfig().with_overrides(BASE | {"image.size_px": 24})
    score = ClassLikelihood(weight_DK=np.random.default_rng(1).normal(size=(16, 3)), bias_K=np.ones(3), label=0)

    def mapped() -> Saliency:
        model = model_of(config).to("cuda" if torch.cuda.is_available() else "cpu")
        image_3HW = torch.linspace(-2, 2, 3 * 24 * 24).sin().reshape(3, 24, 24)
        return saliency_map(
            model, [torch.eye(16)[:2], score], image_3HW, scales_px=(5, 9),
            engine=Fast(fidelity=0.9) if engine == "fast" else "exact",
            arithmetic=Arithmetic(dtype="bfloat16" if engine == "short" else "float32"),
        )  # fmt: skip

    here, there = both(mapped)
    if engine == "exact":
        np.testing.assert_allclose(there.drop_NSHW, here.drop_NSHW, atol=1e-4 * np.ptp(here.drop_NSHW))
        return
    # What is chosen, and how short numbers round, depends on the batches, which a GPU gets larger.
    assert there.agreement is not None
    assert (there.agreement.r_N > 0.9).all()
    for left, right in zip(here.map_NHW, there.map_NHW, strict=True):
        assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.9


def test_what_is_looked_at_in_a_run_is_found_alike(tiny_run, monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda: None)
    for module in (channel_tables, saliency_tables, association):
        monkeypatch.setattr(module, "_draw", lambda *_: None)
    common: dict[str, Any] = {"trial": None, "side": "val", "gpus": 0.0, "say": lambda _: None}
    looks: tuple[Callable[[], Path], ...] = (
        lambda: run_saliency(
            tiny_run.name, settings=SaliencySettings(engine="exact", scales_px=(9,), pictures=2, triplets=1), **common
        ),
        lambda: run_channels(
            tiny_run.name, settings=ChannelSettings(draws=2, window_step_s=0.2, window_width_s=0.2), **common
        ),
        lambda: association.run_association(
            tiny_run.name, settings=AssociationSettings(pictures=2, draws=2, visuals=1, steps=4), **common
        ),
    )
    for look in looks:

        def arrays(look: Callable[[], Path] = look) -> dict[str, np.ndarray]:
            for kind in ("saliency", "channels", "association"):
                shutil.rmtree(tiny_run / kind, ignore_errors=True)
            done = fanout.results(look())
            assert done.missing == ()
            return {f"{key} {name}": value for key in done.keys for name, value in done.read(key).items()}

        here, there = both(arrays)
        assert here.keys() == there.keys()
        for name, value in here.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(there[name], value, atol=1e-4 * np.abs(value).max(), err_msg=name)
            else:
                np.testing.assert_array_equal(there[name], value, err_msg=name)
