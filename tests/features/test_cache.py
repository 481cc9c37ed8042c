"""eegvision.features of networks: equal to the networks' own, made once by whoever is first, again when damaged."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eegvision import features, stream
from eegvision.config import DataConfig, ImageConfig, RunConfig
from eegvision.encoders.frozen import build_backbone
from eegvision.encoders.image import build_original
from eegvision.features import cache, files
from eegvision.ingest import assemble, pictures, shards, simulate
from eegvision.ingest.shards import Manifest
from eegvision.vocab import InputError, home

BASE = {"data.dataset": "tiny", "image.encoder": "small", "image.frozen": True, "image.size_px": 32}


pytestmark = pytest.mark.usefixtures("own_home", "without_ray")


@pytest.fixture
def own_home(tiny_dataset, tmp_path, monkeypatch) -> Path:
    """A home with the data set `tiny` and an empty cache."""
    (tmp_path / "home" / "datasets").mkdir(parents=True)
    (tmp_path / "home" / "datasets" / "tiny").symlink_to(tiny_dataset)
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(**settings: Any) -> RunConfig:
    return RunConfig().with_overrides(BASE | {f"image.{name}": value for name, value in settings.items()})


def made(config: RunConfig, say: Any = None) -> np.ndarray:
    array = features.image_features(config, say=say)
    assert array is not None
    return array


def entries() -> list[Path]:
    return sorted(path for path in (home() / "features").glob("*") if path.is_dir())


def test_features_are_those_of_the_pictures_that_batches_have():
    """The central crop of every picture, through the network by itself, in the order of the store's images."""
    config = run(layer="0.5", pooling="max")
    found_MF = made(config)
    assert found_MF.dtype == np.float32
    assert not found_MF.flags.writeable
    store = stream.load_store(DataConfig(dataset="tiny", val_fraction=0.2), 32)
    assert len(found_MF) == len(store.image_id_M) == 40
    backbone, n_seen = build_backbone(config.image), 0
    for side in ("train", "val", "test"):
        batches = stream.Batches(store, side, config=config.data, size_px=32, batch_size=8, seed=0, training=False)
        for image_B3HW, image_B in batches.images(8):
            with torch.inference_mode():
                expected_BF = backbone(image_B3HW).numpy()
            np.testing.assert_allclose(found_MF[image_B.numpy()], expected_BF, rtol=1e-5, atol=1e-6)
            n_seen += len(image_B)
    assert n_seen == 40


def test_trained_encoders_and_arms_without_pictures_have_none(own_home):
    assert features.image_features(RunConfig().with_overrides({"data.dataset": "tiny"})) is None
    assert (
        features.image_features(RunConfig().with_overrides({"data.dataset": "tiny", "loss.name": "eeg-classes"}))
        is None
    )
    assert not (own_home / "features").exists()


def test_an_entry_has_the_same_bytes_whoever_makes_it(monkeypatch):
    """Threads, batches of the reader and earlier work do not matter."""
    found = []
    for n_threads, group in ((1, 0), (2, 7)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n_threads=n_threads: n_threads)
        torch.rand(3 + group)
        made(run(layer="last"))
        (entry,) = entries()
        found.append((entry.name, (entry / "features.npy").read_bytes()))
        shutil.rmtree(entry)
    assert found[0] == found[1]


def test_what_is_in_the_cache_is_not_computed_again(monkeypatch):
    said: list[str] = []
    first = made(run(), said.append)
    assert any("making features of 40 pictures: small, last" in line for line in said)
    monkeypatch.setattr(cache, "build_backbone", None)  # a network would be needed
    said.clear()
    again = made(run(projector="residual"), said.append)
    np.testing.assert_array_equal(first, again)
    assert isinstance(again, np.memmap)
    assert said == []


def test_the_key_changes_with_every_ingredient(tmp_path):
    catalogue = files.read_catalogue("tiny")
    torch.save({"a": torch.zeros(1)}, tmp_path / "one.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "two.pt")
    base: dict[str, Any] = {"encoder": "resnet18", "frozen": True, "size_px": 64, "blur_px": 2.0}
    changes: list[dict[str, Any]] = [
        {}, {"encoder": "resnet50"}, {"size_px": 96}, {"layer": "0.5"}, {"pooling": "max"}, {"blur_px": 3.0},
        {"foveal": 0.5}, {"weights": "imagenet"}, {"weights": str(tmp_path / "one.pt")},
        {"weights": str(tmp_path / "two.pt")}, {"encoder": "timm", "model": "a"}, {"encoder": "timm", "model": "b"},
        {"encoder": "open_clip", "model": "a"},
    ]  # fmt: skip
    keys = [cache._entry(catalogue, ImageConfig(**(base | change))).folder.name for change in changes]
    other = dataclasses.replace(catalogue, pictures_sha256="0" * 64)
    keys.append(cache._entry(other, ImageConfig(**base)).folder.name)
    assert len(set(keys)) == len(keys)
    same: list[dict[str, Any]] = [
        {"embed_dim": 5}, {"projector": "residual"}, {"layer": "last"}, {"pooling": "mean"}, {"foveal": 0.0}
    ]  # fmt: skip
    for change in same:
        assert cache._entry(catalogue, ImageConfig(**(base | change))).folder.name == keys[0]


def test_a_version_makes_everything_anew(monkeypatch):
    catalogue = files.read_catalogue("tiny")
    before = cache._entry(catalogue, run().image).folder
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert cache._entry(catalogue, run().image).folder != before


def test_the_key_follows_the_bytes_of_a_weights_file_and_not_its_name(tmp_path):
    catalogue = files.read_catalogue("tiny")
    for name in ("one.pt", "copy.pt"):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
    (tmp_path / "copy.pt").write_bytes((tmp_path / "one.pt").read_bytes())

    def key(name: str) -> Path:
        return cache._entry(catalogue, run(weights=str(tmp_path / name)).image).folder

    assert key("one.pt") == key("copy.pt")
    before = key("one.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "one.pt")
    assert key("one.pt") != before


def test_the_key_is_of_the_pictures_whatever_shards_they_lie_in(tmp_path):
    other = tmp_path / "home" / "datasets" / "other"
    assemble.write(other, simulate.simulate(simulate.PRESETS["tiny"], "other"), rows_per_shard=16)
    one, two = files.read_catalogue("tiny"), files.read_catalogue("other")
    assert one.manifest.fingerprint != two.manifest.fingerprint
    assert cache._entry(one, run().image).folder == cache._entry(two, run().image).folder
    before = made(run())
    shutil.rmtree(home() / "features")
    np.testing.assert_array_equal(before, made(RunConfig().with_overrides(BASE | {"data.dataset": "other"})))


def spoil_values(entry: Path) -> None:
    path = entry / "features.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def spoil_length(entry: Path) -> None:
    path = entry / "features.npy"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_note(entry: Path) -> None:
    (entry / "made.json").write_text("{")


def lose_note(entry: Path) -> None:
    (entry / "made.json").unlink()


def lose_values(entry: Path) -> None:
    (entry / "features.npy").unlink()


@pytest.mark.parametrize("spoil", [spoil_values, spoil_length, spoil_note, lose_note, lose_values])
def test_a_damaged_entry_is_made_again(spoil):
    before = np.array(made(run()))
    (entry,) = entries()
    spoil(entry)
    said: list[str] = []
    np.testing.assert_array_equal(made(run(), said.append), before)
    assert any(f"{entry} are damaged; they are made again" in line for line in said)
    assert set(json.loads((entry / "made.json").read_text())) == {"sha256", "made of", "data set", "torch"}


def test_what_an_interruption_leaves_is_no_entry(monkeypatch):
    decode, seen = pictures.decode, []

    def interrupted(encoded, name):
        seen.append(name)
        if len(seen) > 35:
            raise KeyboardInterrupt
        return decode(encoded, name)

    monkeypatch.setattr(pictures, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(run())
    assert [path.suffix for path in entries()] in ([], [".part"])
    monkeypatch.setattr(pictures, "decode", decode)
    assert len(made(run())) == 40
    assert [path.suffix for path in entries()] == [""]


def test_all_layers_of_a_network_come_from_one_pass(monkeypatch):
    configs = [run(layer="0.5"), run(layer="1", pooling="flatten"), run(), run(projector="residual")]
    built = []
    monkeypatch.setattr(cache, "build_backbone", lambda *images: built.append(images) or build_backbone(*images))
    features.warm([*configs, RunConfig().with_overrides({"data.dataset": "tiny"})], say=lambda _: None)
    assert [[image.layer for image in images] for images in built] == [["0.5", "1", None]]
    together = [np.array(made(config)) for config in configs]
    assert len(built) == 1
    shutil.rmtree(home() / "features")
    for config, array in zip(configs[:3], together, strict=False):
        np.testing.assert_array_equal(made(config), array)


def test_networks_that_differ_do_not_share_a_pass(monkeypatch):
    built = []
    monkeypatch.setattr(cache, "build_backbone", lambda *images: built.append(images) or build_backbone(*images))
    features.warm([run(), run(blur_px=1.0), run(size_px=48)], say=lambda _: None)
    assert [len(images) for images in built] == [1, 1, 1]
    assert len(entries()) == 3


def test_values_that_are_not_finite_are_refused(tmp_path):
    state = build_original(run().image).net.state_dict()
    torch.save(state | {"features.10.bias": torch.full((96,), torch.inf)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"small with image.weights '.*w.pth' gives values that are not finite for"):
        made(run(weights=str(tmp_path / "w.pth")))
    assert [path for path in entries() if path.suffix == ""] == []


AT_ONCE = """
import sys
from eegvision import features
from eegvision.config import RunConfig
config = RunConfig().with_overrides({})
print("ready", flush=True)
sys.stdin.readline()
print(features.image_features(config, say=print).sum())
"""


def test_two_processes_at_once_make_it_once():
    """The second waits (or comes when all is done) and gets what the first made."""
    code = AT_ONCE.replace("{}", repr(BASE | {"image.layer": "0.25"}))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert lines[0][-1] == lines[1][-1]
    assert sum(any("making features" in line for line in said) for said in lines) == 1
    assert len(entries()) == 1


def test_a_process_waits_for_the_one_that_is_at_it():
    """With the entry's lock in other hands nothing is made, until these have let go and left an entry."""
    made(run())
    (entry,) = entries()
    hidden = entry.rename(entry.with_name("hidden"))
    said: list[str] = []
    with cache._sole_maker(entry, print):
        other = threading.Thread(target=lambda: made(run(), said.append))
        other.start()
        while not said:
            time.sleep(0.01)
        assert said == [f"another process is making the features {entry.name}; waiting for it"]
        hidden.rename(entry)
    other.join(60)
    assert len(said) == 1  # it found the entry


def test_packages_prepare_pictures_their_own_way(tiny_dataset):
    timm = pytest.importorskip("timm")
    config = RunConfig().with_overrides(
        {"data.dataset": "tiny", "image.encoder": "timm", "image.model": "resnet10t", "image.size_px": 64}
    )
    found_MF = made(config)
    manifest: Manifest = shards.read_manifest(tiny_dataset)
    encoded = shards.read_images(tiny_dataset, manifest, columns=["encoded"])["encoded"][3].as_py()
    backbone = build_backbone(config.image)
    view = timm.data.resolve_data_config({"input_size": (3, 64, 64)}, model=backbone.net)
    own_3HW = timm.data.create_transform(**view, is_training=False)(Image.fromarray(pictures.decode(encoded, "3")))
    net: Any = backbone.net
    with torch.inference_mode():
        expected_F = net.forward_head(net.forward_features(own_3HW[None]), pre_logits=True)[0]
    np.testing.assert_allclose(found_MF[3], expected_F, rtol=1e-3, atol=1e-4)
