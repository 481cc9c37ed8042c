"""eegvision.assess: what is scored is what the model gives for the side asked, and every row says how."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eegvision.assess.embedding import embed, embed_pictures, open_store, side_sha256
from eegvision.assess.record import evaluate
from eegvision.assess.scores import Question, read_categories
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.stream import Store
from eegvision.vocab import InputError

CONFIG = RunConfig().with_overrides(
    {
        "data.dataset": "tiny",
        "data.val_fraction": 0.25,
        "data.test_fraction": 0.25,
        "eeg.encoder": "tsconv",
        "eeg.embed_dim": 16,
        "image.embed_dim": 16,
        "image.size_px": 32,
        "loss.name": "info_nce",
    }
)


def made(config: RunConfig, store: Store) -> JointModel:
    """An untrained model: scores near chance are scores all the same."""
    torch.manual_seed(0)
    manifest = store.manifest
    shape = (manifest.n_chans, manifest.n_times, manifest.sfreq_hz)
    return build_joint(config, *shape, n_classes=len(manifest.classes)).eval()


@pytest.fixture(scope="module")
def store(tiny_dataset) -> Store:
    assert tiny_dataset.name == "tiny"
    return open_store(CONFIG)


@pytest.fixture(scope="module")
def model(store) -> JointModel:
    return made(CONFIG, store)


def rows_of(evaluation, **wanted):
    return [row for row in evaluation.rows if all(row[name] == value for name, value in wanted.items())]


@torch.no_grad()
def test_a_side_is_embedded_sample_by_sample(store, model):
    found = embed(model, store, "test", batch_size=5)
    assert found.eeg_ND is not None
    assert found.row_N.tolist() == store.split.rows["test"].tolist()
    for n in (0, 3, len(found.row_N) - 1):
        eeg_CT = torch.from_numpy(store.read(int(found.row_N[n])))
        np.testing.assert_allclose(found.eeg_ND[n], model.encode_eeg(eeg_CT[None])[0].numpy(), atol=1e-5)
    assert (found.image_id_M[found.column_N] == store.image_id_M[store.image_N[found.row_N]]).all()
    assert (found.label_M[found.column_N] == found.label_N).all()
    assert (found.count_N == 1).all()


def test_retrieval_is_what_brute_force_says(store, model):
    found = embed(model, store, "test")
    evaluation = evaluate(model, store, "test", Question(curve=False))
    assert found.eeg_ND is not None
    assert found.image_MD is not None
    score_NM = found.eeg_ND @ found.image_MD.T
    own_N = score_NM[np.arange(len(score_NM)), found.column_N]
    rank_N = 1 + (score_NM > own_N[:, None]).sum(axis=1)
    for k in (1, 3, 5):
        row = rows_of(evaluation, metric=f"top-{k}", gallery="exact-image", group_name="all")[0]
        assert row["value"] == pytest.approx((rank_N <= k).mean())
        assert row["chance"] == pytest.approx(k / len(found.image_M))
        assert row["n_images"] == len(found.image_M) < row["n_queries"] == len(rank_N)
    for subject in ("sub-01", "sub-02"):
        row = rows_of(evaluation, metric="top-1", gallery="exact-image", group=subject)[0]
        assert row["value"] == pytest.approx((rank_N[found.subject_N == subject] <= 1).mean())


def test_class_centres_are_made_without_the_pictures_of_the_side(store, model):
    found = embed(model, store, "test")
    assert found.eeg_ND is not None
    others = [embed_pictures(model, store, side) for side in ("train", "val")]
    image_ID = np.concatenate([image_MD for image_MD, _ in others])
    label_I = store.label_M[np.concatenate([image_M for _, image_M in others])]
    assert not np.isin(np.concatenate([image_M for _, image_M in others]), found.image_M).any()
    label_K = np.unique(found.label_M)
    centre_KD = np.stack([image_ID[label_I == label].mean(axis=0) for label in label_K])
    centre_KD /= np.linalg.norm(centre_KD, axis=1, keepdims=True)
    right = (label_K[(found.eeg_ND @ centre_KD.T).argmax(axis=1)] == found.label_N).mean()
    evaluation = evaluate(model, store, "test", Question(curve=False))
    row = rows_of(evaluation, metric="top-1", gallery="class-centre-without-stimulus", group_name="all")[0]
    assert row["value"] == pytest.approx(right)


@pytest.mark.usefixtures("tiny_dataset")
def test_a_file_of_centres_takes_the_place_of_those_of_the_pictures(tmp_path):
    config = CONFIG.with_overrides({"image.size_px": None, "image.encoder": "random-codebook"})
    own = open_store(config)
    torch.manual_seed(0)
    shape = (own.manifest.n_chans, own.manifest.n_times, own.manifest.sfreq_hz)
    frozen = build_joint(config, *shape, n_features=16).eval()
    np.save(tmp_path / "centres.npy", np.random.default_rng(0).normal(size=(5, 16)))
    np.save(tmp_path / "short.npy", np.zeros((2, 16)))
    question = Question(galleries=("class-centre-without-stimulus",), centres=tmp_path / "centres.npy", curve=False)
    assert evaluate(frozen, own, "test", question).rows[0]["n_gallery"] == 5
    with pytest.raises(InputError, match=r"short.npy has the shape \(2, 16\); expected one row for each of 5 classes"):
        evaluate(frozen, own, "test", replace(question, centres=tmp_path / "short.npy"))
    with pytest.raises(InputError, match=r"nothing.npy cannot be read"):
        evaluate(frozen, own, "test", replace(question, centres=tmp_path / "nothing.npy"))


def test_the_curve_ends_where_all_presentations_are_averaged(store, model):
    evaluation = evaluate(model, store, "test", Question())
    averaged = evaluate(model, open_store(CONFIG, repetitions=0), "test", Question(curve=False))
    assert {row["repetitions"] for row in averaged.rows} == {2}
    for subject in ("sub-01", "sub-02"):
        curve = [row for row in evaluation.curves if row["subject"] == subject]
        assert [row["repetitions"] for row in curve] == [1, 2]
        whole = rows_of(averaged, metric="top-1", gallery="exact-image", group=subject)[0]["value"]
        assert curve[-1]["accuracy"] == pytest.approx(whole)


def test_probes_are_scored_on_the_side_asked_by_segment_and_by_picture(store, model):
    evaluation = evaluate(model, store, "test", Question(protocol="probe"))
    found = embed(model, store, "test")
    for side, n in (("eeg", len(found.row_N)), ("image", len(found.image_M))):
        row = rows_of(evaluation, probe_side=side, group_name="all")[0]
        asked = [at for at, name in enumerate(evaluation.predictions["probe_side"]) if name == side]
        right = [evaluation.predictions["label"][at] == evaluation.predictions["predicted"][at] for at in asked]
        assert (row["n_queries"], row["value"]) == (n, pytest.approx(np.mean(right)))
        assert 0 < row["p"] <= 1
    by_class = rows_of(evaluation, probe_side="eeg", group_name="class")
    assert sum(row["n_queries"] for row in by_class) == len(found.row_N)
    assert evaluation.confusion is not None
    assert np.sum(evaluation.confusion["count_KK"]) == len(found.row_N)


def test_classes_told_of_fewer_pictures_leave_the_side_and_its_name_alone(store):
    told = open_store(CONFIG.with_overrides({"data.labelled": 0.3}))
    train = told.split.rows["train"]
    shown = np.unique(told.image_N[train][told.label_N[train] >= 0])
    assert 5 <= len(shown) < len(np.unique(told.image_N[train]))
    assert set(told.label_M[shown].tolist()) == set(range(5))
    assert (told.label_N[told.split.rows["test"]] == store.label_N[store.split.rows["test"]]).all()
    assert side_sha256(told, "test") == side_sha256(store, "test") != side_sha256(store, "val")


def test_categories_come_from_a_table_and_gaps_in_it_are_named(store, model, tmp_path):
    path = tmp_path / "categories.csv"
    names = store.manifest.classes
    path.write_text("label_name,category\n" + "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names)))
    evaluation = evaluate(model, store, "test", Question(curve=False, categories=path))
    found = {row["group"] for row in rows_of(evaluation, group_name="category")}
    assert found == {"a", "b"}
    assert evaluation.confusion is not None
    assert set(evaluation.confusion["categories"]) <= {"a", "b"}
    path.write_text(f"label_name,category\n{names[0]},a\n")
    with pytest.raises(InputError, match="has no category for the class"):
        evaluate(model, store, "test", Question(curve=False, categories=path))
    path.write_text(f"label_name,category\n{names[0]},\n")
    with pytest.raises(InputError, match="line 2: expected the columns label_name and category"):
        read_categories(path)


@pytest.mark.parametrize("name", ["eeg-classes", "image-classes"])
def test_one_encoder_alone_is_probed_and_retrieves_nothing(store, name):
    own = {"eeg-classes": "eeg", "image-classes": "image"}[name]
    settings = CONFIG.to_dict() | {"loss": {"name": name}, {"eeg": "image", "image": "eeg"}[own]: {}}
    config = RunConfig.from_dict(settings)
    alone = made(config, store)
    evaluation = evaluate(alone, open_store(config), "test", Question(protocol="probe"))
    assert {row["probe_side"] for row in evaluation.rows} == {own}
    with pytest.raises(InputError, match=f"retrieval needs both encoders, and this model has the {own} one only"):
        evaluate(alone, open_store(config), "test", Question())


def test_every_row_says_its_circumstances(store, model):
    wanted = {"side", "split", "selection", "is_chosen_on", "arm", "n_channels", "repetitions", "normalise", "gallery"}
    wanted |= {"transductive", "n_gallery", "probe_side", "chance", "significance_line", "low", "high", "p", "control"}
    for protocol in ("probe", "zero-shot"):
        for row in evaluate(model, store, "val", Question(protocol=protocol, curve=False)).rows:  # type: ignore[arg-type]
            assert wanted <= row.keys()
            assert row["is_chosen_on"]
