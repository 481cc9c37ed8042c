"""eegvision.inspection.semantic: what is compared, that the tables hold it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eegvision import checkpoint, grid, runs
from eegvision.assess.embedding import embed, open_store
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.inspection.feature_settings import SemanticSettings
from eegvision.inspection.semantic import run_semantic
from eegvision.vocab import InputError

pytestmark = pytest.mark.usefixtures("ray_local", "run")

TRAINING: dict[str, Any] = {
    "data.dataset": "tiny", "data.val_fraction": 0.4, "eeg.encoder": "tsconv", "eeg.embed_dim": 16,
    "image.embed_dim": 16, "image.size_px": 32, "loss.name": "info_nce", "train.max_passes": 1,
}  # fmt: skip
SETTINGS = SemanticSettings(permutations=200)


@pytest.fixture(scope="module")
def run(tiny_dataset: Path) -> Path:
    """The run `meaning` of one trial on the data set `tiny`."""
    assert tiny_dataset.name == "tiny"
    folder = runs.named_folder("runs", "meaning")
    config = RunConfig().with_overrides(TRAINING)
    grid.fit_all([grid.Cell(key="model", config=config)], folder, say=lambda _: None)
    (folder / "best.json").write_text(json.dumps({"trial": "model", "number": 1}))
    return folder


def compare(settings: SemanticSettings = SETTINGS) -> tuple[Path, str]:
    said: list[str] = []
    folder = run_semantic("meaning", trial=None, side="val", settings=settings, say=said.append)
    return folder, "\n".join(said)


def unit(value_ND: np.ndarray) -> np.ndarray:
    return value_ND / np.linalg.norm(value_ND, axis=1, keepdims=True)


def test_pictures_are_compared_by_class_from_the_embeddings_of_the_model(run):
    folder, said = compare()
    path = checkpoint.latest(run / "trials" / "model" / "best")
    assert path is not None
    model = JointModel.load(path)
    store = open_store(model.config)
    side = embed(model, store, "val")
    assert side.eeg_ND is not None
    assert side.image_MD is not None
    matrix = pd.read_csv(folder / "matrix-eeg-pictures.csv").set_index("concept")
    assert sorted(matrix.index) == sorted(side.image_id_M)
    classes = [store.manifest.classes[label] for label in np.sort(side.label_M)]
    assert matrix.category.tolist() == classes  # in contiguous runs
    for column, image_id in enumerate(side.image_id_M.tolist()):
        mean_D = unit(side.eeg_ND[side.column_N == column]).mean(axis=0, keepdims=True)
        expected_M = (unit(mean_D) @ unit(side.image_MD).T)[0]
        np.testing.assert_allclose(matrix.loc[image_id, side.image_id_M.tolist()], expected_M, atol=1e-5)
    found = pd.read_csv(folder / "similarity.csv").set_index("compared")
    value_KK = matrix.drop(columns="category").to_numpy()
    is_one_KK = np.array(classes)[:, None] == np.array(classes)
    within = value_KK[is_one_KK & ~np.eye(len(classes), dtype=bool)].mean()
    assert found.within["eeg-pictures"] == pytest.approx(within)
    assert found.between["eeg-pictures"] == pytest.approx(value_KK[~is_one_KK].mean())
    assert found.n_categories["eeg-eeg"] == len(set(classes))
    assert f"pictures by class; {len(side.row_N)} val segments, {len(side.image_id_M)} pictures" in said
    for name in ("similarity", "pca-eeg", "pca-pictures", "mds-eeg", "mds-pictures"):
        assert {path.suffix for path in (folder / "figures").glob(f"{name}.*")} == {".svg", ".pdf", ".png", ".csv"}


def test_classes_are_compared_by_the_categories_of_a_file(tmp_path):
    names = open_store(RunConfig().with_overrides(TRAINING)).manifest.classes
    lines = [f"{name},{('second', 'first')[number % 2]}" for number, name in enumerate(names)]
    path = tmp_path / "categories.csv"
    path.write_text("\n".join(["label_name,category", *lines]) + "\n")
    folder, said = compare(SemanticSettings(permutations=200, categories=path))
    matrix = pd.read_csv(folder / "matrix-eeg-pictures.csv")
    assert matrix.concept.tolist() == [*names[::2], *names[1::2]]
    assert matrix.category.tolist() == ["second"] * 3 + ["first"] * 2
    assert "5 classes by category (2 of these)" in said
    path.write_text("\n".join(["label_name,category", *lines[:-1]]) + "\n")
    with pytest.raises(InputError, match=rf"has no category for the class '{names[-1]}'; add a line"):
        compare(SemanticSettings(permutations=200, categories=path))
    with pytest.raises(InputError, match="permutations is 0; expected at least 1"):
        SemanticSettings(permutations=0)
