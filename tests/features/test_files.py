"""eegvision.features from files: every layout in circulation, rows that belong to their pictures, damage by name."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from eegvision import features
from eegvision.config import RunConfig
from eegvision.features import files
from eegvision.features.files import Catalogue, read_features
from eegvision.ingest import shards
from eegvision.ingest.places import place
from eegvision.vocab import InputError

F = 3
TRAIN = [f"training/{concept}/{concept[6:]}_{n:02d}b" for concept in ("00001_ant", "00002_bat") for n in (1, 2)]
TEST = ["test/00001_cup/cup_01s", "test/00002_dog/dog_07s"]
CLASSES = ("bat", "ant", "dog", "cup")  # in an order of their own
LABELS = np.array([1, 1, 0, 0, 3, 2])


@pytest.fixture
def things(tiny_dataset) -> Catalogue:
    """Six pictures as THINGS-EEG2 has them: four for training, two for testing, in the order of the conditions."""
    manifest = dataclasses.replace(
        shards.read_manifest(tiny_dataset), name="things", classes=CLASSES, published={"test": tuple(TEST)}
    )
    return Catalogue(
        root=place(tiny_dataset),
        manifest=manifest,
        image_id_M=np.array([*TRAIN, *TEST]),
        label_M=LABELS,
        is_test_M=np.arange(6) >= 4,
        pictures_sha256="0" * 64,
    )


def rows(*numbers: int) -> torch.Tensor:
    """Row m is m, m + 1/4, m + 1/2: exact in half precision."""
    return torch.tensor(numbers)[:, None] + torch.tensor([0.0, 0.25, 0.5])


def assert_rows(found: np.ndarray, numbers: Any) -> None:
    np.testing.assert_array_equal(found, rows(*numbers).numpy())
    assert found.dtype == np.float32
    assert not found.flags.writeable


def pt(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def npy(path: Path, array: Any) -> str:
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("is_flat", [True, False])
def test_rows_without_names_are_in_the_fields_order(things, tmp_path, dtype, is_flat):
    array = rows(*range(6)).numpy().astype(dtype)
    path = npy(tmp_path / "f.npy", array if is_flat else array[:, None])
    assert_rows(read_features(path, "img_features", things), range(6))


def test_nices_two_files(things, tmp_path):
    npy(tmp_path / "clip_feature_maps_training.npy", rows(0, 1, 2, 3).numpy()[:, None])
    npy(tmp_path / "clip_feature_maps_test.npy", rows(4, 5).numpy()[:, None])
    assert_rows(read_features(str(tmp_path / "clip_feature_maps_*.npy"), "img_features", things), range(6))


def test_atms_two_files_hold_pictures_and_texts_per_class(things, tmp_path):
    text = {"train": rows(10, 11), "test": rows(12, 13)}
    image = {"train": rows(0, 1, 2, 3), "test": rows(4, 5)}
    for side in ("train", "test"):
        pt(
            tmp_path / f"ViT-H-14_features_{side}.pt",
            {"text_features": text[side], "img_features": image[side].half()},
        )
    pattern = str(tmp_path / "ViT-H-14_features_*.pt")
    assert_rows(read_features(pattern, "img_features", things), range(6))
    # One text per concept, in the order of the folders: ant, bat; cup, dog.
    assert_rows(read_features(pattern, "text_features", things), (10, 10, 11, 11, 12, 13))


def test_ubps_dicts_name_pictures_by_their_paths(things, tmp_path):
    name_of = {m: f"train_images/{name.removeprefix('training/')}.jpg" for m, name in enumerate(TRAIN)}
    name_of |= {m + 4: f"test_images/{name.removeprefix('test/')}.jpg" for m, name in enumerate(TEST)}
    order = (5, 3, 0, 1, 4, 2)
    texts = {CLASSES[label]: rows(20 + label)[0] for label in range(4)}
    path = pt(tmp_path / "u.pt", {"img_features": {name_of[m]: rows(m)[0] for m in order}, "text_features": texts})
    assert_rows(read_features(path, "img_features", things), range(6))
    assert_rows(read_features(path, "text_features", things), 20 + LABELS)


@pytest.mark.parametrize("kind", ["dict", "table", "table of rows [1,F]", "safetensors"])
def test_rows_with_names_may_come_in_any_order(things, tmp_path, kind):
    order = [3, 0, 5, 1, 4, 2]
    names = [str(things.image_id_M[m]) for m in order]
    by_name = {name: rows(m)[0] for name, m in zip(names, order, strict=True)} | {"another": torch.zeros(F)}
    if kind == "safetensors":
        path = str(tmp_path / "f.safetensors")
        safetensors.torch.save_file(by_name, path)
    elif kind == "dict":
        path = pt(tmp_path / "f.pt", by_name)
    else:
        table = rows(*order) if kind == "table" else rows(*order)[:, None]
        path = pt(tmp_path / "f.pt", {"image_id": names, "features": table})
    assert_rows(read_features(path, "img_features", things), range(6))


def test_the_length_of_vectors_is_said(things, tmp_path):
    said: list[str] = []
    read_features(npy(tmp_path / "f.npy", np.eye(6, F * 2)), "img_features", things, say=said.append)
    read_features(npy(tmp_path / "g.npy", np.diag(np.arange(1.0, 7))), "img_features", things, say=said.append)
    assert said == [f"{tmp_path}/f.npy: 6 x 6, of unit length", f"{tmp_path}/g.npy: 6 x 6, of lengths 1 to 6"]


def damaged(value: float) -> torch.Tensor:
    table = rows(*range(6))
    table[2, 1] = value
    return table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows(0, 1, 2, 3, 4), r"f.pt has 5 rows, but data set 'things' has 6 pictures there; take the features"),
        (damaged(float("nan")), r"f.pt has the value nan in row 2, column 1; features must be finite"),
        (damaged(float("inf")), r"f.pt has the value inf in row 2, column 1"),
        (
            {"image_id": [*TRAIN, *TEST], "features": damaged(float("nan"))},
            r"f.pt has the value nan in row 2 \('training/00002_bat/bat_01b'\), column 1",
        ),
        (torch.zeros(6, 3, dtype=torch.int64), r"f.pt holds int64 of shape \(6, 3\); expected fractional numbers"),
        (torch.zeros(6, 2, 3), r"f.pt holds float32 of shape \(6, 2, 3\)"),
        (torch.zeros(6, 0), r"f.pt holds float32 of shape \(6, 0\)"),
        ({"epoch": 3, "model": "x"}, r"f.pt holds a dict with epoch, model; expected `img_features`, `features`"),
        ({}, r"f.pt holds a dict with nothing"),
        (["a"], r"f.pt holds a list; expected fractional numbers"),
        ({"image_id": ["a"], "features": rows(0, 1)}, r"f.pt has 1 names for 2 rows of features"),
        ({"image_id": [1, 2], "features": rows(0, 1)}, r"f.pt has names that are not a list of words"),
        ({"a": torch.zeros(3), "b": torch.zeros(4)}, r"f.pt has 4 values for 'b' and 3 for 'a'; all need as many"),
        (
            {name: torch.zeros(3) for name in TRAIN},
            r"f.pt has no features for picture 'test/00001_cup/cup_01s' of data set 'things'; its 4 names are such as "
            r"'training/00001_ant/ant_01b': add what is missing",
        ),
        (
            {"image_id": [TRAIN[0], TRAIN[0]], "features": rows(0, 1)},
            r"f.pt has 'training/00001_ant/ant_01b' more than once",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(things, tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_features(pt(tmp_path / "f.pt", content), "img_features", things)


def test_texts_of_another_number_are_refused(things, tmp_path):
    message = r"f.pt has 5 rows, but data set 'things' has 6 pictures of 4 classes there"
    with pytest.raises(InputError, match=message):
        read_features(pt(tmp_path / "f.pt", rows(*range(5))), "text_features", things)
    unknown = dataclasses.replace(things, label_M=np.array([1, 1, 0, 0, 3, -1]))
    with pytest.raises(InputError, match=r"f.pt has 4 rows, but data set 'things' has 6 pictures of 4 classes"):
        read_features(pt(tmp_path / "f.pt", rows(*range(4))), "text_features", unknown)


def test_files_that_are_missing_or_damaged_are_refused(things, tmp_path):
    with pytest.raises(InputError, match=r"'.*gone.npy' is not a file.*correct the path"):
        read_features(str(tmp_path / "gone.npy"), "img_features", things)
    for path in (npy(tmp_path / "f.npy", rows(*range(6)).numpy()), pt(tmp_path / "f.pt", rows(*range(6)))):
        Path(path).write_bytes(Path(path).read_bytes()[:-20])
        with pytest.raises(InputError, match=rf"features {path} cannot be read \(.*copy the file again"):
            read_features(path, "img_features", things)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_a_file_cannot_run_code(things, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "f.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for path in (str(tmp_path / "f.npy"), pt(tmp_path / "f.pt", {"img_features": Trap()})):
        with pytest.raises(InputError, match="cannot be read"):
            read_features(path, "img_features", things)
    assert not Path("sprung").exists()


def test_rows_without_names_need_pictures_in_a_known_order(things, tmp_path):
    path = npy(tmp_path / "f.npy", rows(*range(6)).numpy())
    swapped = dataclasses.replace(things, image_id_M=things.image_id_M[[1, 0, 2, 3, 4, 5]])
    message = r"not in the order of their names \(picture 0 is '.*ant_02b', by name it would be '.*ant_01b'\)"
    with pytest.raises(InputError, match=message):
        read_features(path, "img_features", swapped)
    named = pt(tmp_path / "f.pt", {"image_id": [*TRAIN, *TEST], "features": rows(*range(6))})
    assert_rows(read_features(named, "img_features", swapped), (1, 0, 2, 3, 4, 5))
    # All pictures in the order of their names, whatever side they are on, is known too.
    order = np.argsort(things.image_id_M)
    by_name = dataclasses.replace(things, image_id_M=things.image_id_M[order], is_test_M=things.is_test_M[order])
    assert_rows(read_features(path, "img_features", by_name), range(6))


def test_a_star_stands_for_one_training_and_one_test_file(things, tmp_path):
    pattern = str(tmp_path / "f_*.npy")
    npy(tmp_path / "f_training.npy", rows(0, 1, 2, 3).numpy())
    with pytest.raises(InputError, match=r"one file with 'test' in place of the \*; there is none"):
        read_features(pattern, "img_features", things)
    npy(tmp_path / "f_test.npy", rows(4).numpy())
    with pytest.raises(InputError, match=r"f_test.npy has 1 rows, but data set 'things' has 2 pictures there"):
        read_features(pattern, "img_features", things)
    npy(tmp_path / "f_test.npy", torch.zeros(2, 5).numpy())
    with pytest.raises(InputError, match=r"has features of 3 and 5 dimensions; give one kind"):
        read_features(pattern, "img_features", things)
    npy(tmp_path / "f_train.npy", rows(0, 1, 2, 3).numpy())
    with pytest.raises(InputError, match=r"one file with 'train' in place of the \*; there are 2: .*f_train.npy, "):
        read_features(pattern, "img_features", things)
    unpublished = dataclasses.replace(things, is_test_M=np.zeros(6, dtype=bool))
    with pytest.raises(InputError, match=r"does not come with published training and test pictures"):
        read_features(pattern, "img_features", unpublished)


def run(**settings: Any) -> RunConfig:
    overrides = {f"image.{name}": value for name, value in settings.items()}
    if "embed_dim" in settings:
        overrides["eeg.embed_dim"] = settings["embed_dim"]
    return RunConfig().with_overrides({"data.dataset": "tiny"} | overrides)


def named(tiny_dataset: Path, path: Path, width: int = F) -> tuple[str, np.ndarray]:
    manifest = shards.read_manifest(tiny_dataset)
    names = shards.read_images(tiny_dataset, manifest, columns=["image_id"])["image_id"].to_pylist()
    table = torch.randn(len(names), width, generator=torch.Generator().manual_seed(2))
    return pt(path, {"image_id": names[::-1], "features": table.flip(0)}), table.numpy()


def test_a_run_takes_features_and_texts_from_files(tiny_dataset, tmp_path):
    image_path, image_MF = named(tiny_dataset, tmp_path / "image.pt", 7)
    text_path, text_MF = named(tiny_dataset, tmp_path / "text.pt", 5)
    config = run(encoder="file", features=image_path, text=text_path, embed_dim=5)
    np.testing.assert_array_equal(features.image_features(config), image_MF)
    np.testing.assert_array_equal(features.text_features(config), text_MF)
    assert features.text_features(run(encoder="file", features=image_path)) is None
    said: list[str] = []
    features.warm([config, config], say=said.append)
    assert len(said) == 2  # each file once
    with pytest.raises(InputError, match=r"text.pt has features of 5 dimensions, but embeddings have 6; set"):
        features.text_features(run(encoder="file", features=image_path, text=text_path, embed_dim=6))


def test_a_codebook_depends_on_names_and_dimensions_alone(tiny_dataset):
    config = run(encoder="random-codebook", embed_dim=64)
    code_MD = features.image_features(config)
    assert code_MD is not None
    assert code_MD.shape == (40, 64)
    assert code_MD.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(code_MD, axis=1), 1, rtol=1e-6)
    manifest = shards.read_manifest(tiny_dataset)
    label_M = shards.read_images(tiny_dataset, manifest, columns=["label"])["label"].to_numpy()
    codes = np.stack([code_MD[label_M == label][0] for label in range(5)])
    np.testing.assert_array_equal(code_MD, codes[label_M])
    assert np.abs(codes @ codes.T - np.eye(5)).max() < 0.5  # by chance 1/8 as standard deviation
    other_seed = config.with_overrides({"seed": 7, "data.split_seed": 3, "image.projector": "none"})
    np.testing.assert_array_equal(features.image_features(other_seed), code_MD)
    by_hand = np.random.default_rng(
        [int.from_bytes(hashlib.sha256(f"class {manifest.classes[0]}".encode()).digest()[:8], "little"), 64]
    ).standard_normal(64)
    np.testing.assert_allclose(codes[0], by_hand / np.linalg.norm(by_hand), rtol=1e-5)


def test_pictures_without_a_class_have_codes_of_their_own(tiny_dataset, monkeypatch):
    from eegvision.features import lookup

    whole = files.read_catalogue(str(tiny_dataset))
    without = dataclasses.replace(whole, label_M=np.full(40, -1))
    monkeypatch.setattr(lookup, "read_catalogue", lambda _: without)
    code_MD = features.image_features(run(encoder="random-codebook"))
    assert code_MD is not None
    assert len(np.unique(code_MD, axis=0)) == 40
