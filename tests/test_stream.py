"""eegvision.stream: every segment once a pass, whoever works on it; crops by hand; the same arrays by every way."""

import dataclasses
import gc
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eegvision import stream
from eegvision.config import DataConfig, RunConfig
from eegvision.ingest import pictures, pieces, shards
from eegvision.ingest.pieces import Cut
from eegvision.ingest.places import place
from eegvision.ingest.shards import Manifest
from eegvision.ingest.splits import Split
from eegvision.stream import batches as batching
from eegvision.stream import store as storing
from eegvision.stream.repeats import Repeats, grouped, singles
from eegvision.vocab import InputError, Montage

SIZE, SIDE = 20, 22  # input, and 1.1 times that
N, M = 50, 7
CONFIG = DataConfig()
MANIFEST = Manifest(
    name="made", dialect="test", licence="CC0", montage=Montage(channels=("Oz", "Cz")), sfreq_hz=100.0, t_min_s=0.0,
    n_times=3, unit="zscore", classes=("a", "b"), n_segments=N, n_images=M, subjects=("1",), dropped={}, shards=(),
    audit={"grade": "green"}, fingerprint="0" * 12,
)  # fmt: skip


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)  # as arrays in Ray's object store are
    return array


@pytest.fixture(scope="module")
def store() -> stream.Store:
    """Segment n is n everywhere and shows image n % 7; training has the first 40, validation the last 10."""
    image_N = np.arange(N) % M
    label_M = np.arange(M) % 2
    return stream.Store(
        manifest=MANIFEST,
        cut=Cut(channels=("Oz", "Cz"), first=0, stop=3),
        pieces=(),
        repeats=singles(np.arange(N)),
        eeg_NCT=read_only(np.broadcast_to(np.arange(N, dtype=np.float32)[:, None, None], (N, 2, 3)).copy()),
        image_N=image_N,
        label_N=label_M[image_N],
        subject_N=np.full(N, "1"),
        segment_id_N=np.array([f"s{n}" for n in range(N)]),
        split=Split(rows={"train": np.arange(40), "val": np.arange(40, 50), "test": np.arange(0)}, notes=()),
        images_M3HH=read_only(np.random.default_rng(0).integers(0, 256, (M, 3, SIDE, SIDE), dtype=np.uint8)),
        image_id_M=np.array([f"i{n}" for n in range(M)]),
        label_M=label_M,
    )


def train(store: stream.Store, **changes: Any) -> stream.Batches:
    values: dict[str, Any] = {"config": CONFIG, "size_px": SIZE, "batch_size": 12, "seed": 3, "training": True}
    return stream.Batches(store, "train", **(values | changes))


def val(store: stream.Store, **changes: Any) -> stream.Batches:
    values: dict[str, Any] = {"config": CONFIG, "size_px": SIZE, "batch_size": 4, "seed": 3, "training": False}
    return stream.Batches(store, "val", **(values | changes))


def eeg_of(store: stream.Store) -> np.ndarray:
    assert store.eeg_NCT is not None
    return store.eeg_NCT


def rows(batches, number: int = 1, start_step: int = 0) -> list[list[int]]:
    return [batch.row_B.tolist() for batch in batches.passes(number, start_step)]


def parts_of(batch: stream.Batch) -> dict[str, torch.Tensor]:
    return {name: part for name, part in vars(batch).items() if part is not None}


def pictures_of(store: stream.Store) -> np.ndarray:
    assert store.images_M3HH is not None
    return store.images_M3HH


def views_of(batch: stream.Batch) -> torch.Tensor:
    assert batch.image_BX is not None
    return batch.image_BX


def assert_same(left: stream.Batch, right: stream.Batch) -> None:
    assert parts_of(left).keys() == parts_of(right).keys()
    for name, part in parts_of(left).items():
        assert torch.equal(part, getattr(right, name)), name


def pixels(image_B3HW: torch.Tensor) -> np.ndarray:
    """Undo the normalisation by hand."""
    mean, std = np.array(stream.IMAGE_MEAN), np.array(stream.IMAGE_STD)
    return np.rint(255 * (image_B3HW.numpy() * std[:, None, None] + mean[:, None, None])).astype(np.uint8)


def test_a_pass_meets_segments_once_and_leaves_out_the_incomplete_batch(store):
    batches = train(store)
    steps = rows(batches)
    assert len(steps) == len(batches) == 3
    assert [len(step) for step in steps] == [12, 12, 12]
    seen = {row for step in steps for row in step}
    assert len(seen) == 36
    assert seen <= set(range(40))


def test_every_row_of_a_batch_belongs_together(store):
    for batch in train(store).passes(1):
        row_B = batch.row_B
        assert torch.equal(batch.eeg_BCT, row_B[:, None, None].expand(-1, 2, 3).float())
        assert torch.equal(batch.image_B, row_B % 7)
        assert torch.equal(batch.label_B, row_B % 7 % 2)
        assert torch.equal(batch.subject_B, torch.zeros_like(row_B))
        assert views_of(batch).shape == (12, 3, SIZE, SIZE)
        assert batch.text_BF is None
        assert {str(part.dtype) for part in parts_of(batch).values()} == {"torch.float32", "torch.int64"}


def test_order_depends_on_seed_and_pass_alone(store):
    assert rows(train(store), 5) == rows(train(store), 5)
    orders = [rows(train(store), 1), rows(train(store), 2), rows(train(store, seed=4), 1)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_share_the_global_batches_of_one(store, world):
    alone = list(train(store).passes(2))
    shared = [list(train(store, rank=rank, world=world).passes(2)) for rank in range(world)]
    for whole, *parts in zip(alone, *shared, strict=True):
        joined = {name: torch.cat([vars(part)[name] for part in parts]) for name in parts_of(whole)}
        assert_same(whole, dataclasses.replace(whole, **joined))


def test_a_resumed_pass_owes_exactly_the_rest(store):
    whole = list(train(store).passes(4))
    rest = list(train(store).passes(4, start_step=1))
    assert len(rest) == 2
    for left, right in zip(whole[1:], rest, strict=True):
        assert_same(left, right)
    assert list(train(store).passes(4, start_step=3)) == []


def test_validation_keeps_order_and_drops_nothing(store):
    batches = val(store)
    assert rows(batches, 1) == rows(batches, 2) == [[40, 41, 42, 43], [44, 45, 46, 47], [48, 49]]
    assert len(batches) == 3
    shares = [val(store, rank=rank, world=3) for rank in range(3)]
    assert [rows(share) for share in shares] == [[[40], [41], [42], [43]], [[44], [45], [46]], [[47], [48], [49]]]
    assert [len(share) for share in shares] == [len(rows(share)) for share in shares]


def test_ten_crops_by_hand():
    image_HH = np.arange(6 * 6, dtype=np.uint8).reshape(6, 6)
    images_M3HH = torch.from_numpy(np.stack([np.stack([image_HH + 40 * c for c in range(3)])] * 2))
    views = [image_HH[:4, :4], image_HH[:4, 2:], image_HH[2:, :4], image_HH[2:, 2:], image_HH[1:5, 1:5]]
    views += [view[:, ::-1] for view in views]
    for crop in (stream.crop_by_slices, stream.crop_by_index):
        cut_B3HW = crop(images_M3HH, np.ones(10, dtype=np.int64), np.arange(10), 4)
        for cut_3HW, view in zip(cut_B3HW.numpy(), views, strict=True):
            np.testing.assert_array_equal(cut_3HW, [view, view + 40, view + 80])


def test_both_ways_to_crop_agree(store):
    rng = np.random.default_rng(1)
    images, image_B, crop_B = torch.tensor(store.images_M3HH), rng.integers(M, size=64), rng.integers(10, size=64)
    by_slices = stream.crop_by_slices(images, image_B, crop_B, 8)
    assert torch.equal(by_slices, stream.crop_by_index(images, image_B, crop_B, 8))


def crops_used(store: stream.Store, batches: stream.Batches, number: int) -> dict[int, int]:
    """Find, for every segment of a pass, which of the ten crops of its image it came with."""
    used: dict[int, int] = {}
    for batch in batches.passes(number):
        for row, image_3HW in zip(batch.row_B.tolist(), pixels(views_of(batch)), strict=True):
            images = torch.tensor(pictures_of(store)[row % M][None])
            views = stream.crop_by_slices(images, np.zeros(10, dtype=np.int64), np.arange(10), SIZE).numpy()
            (used[row],) = np.flatnonzero((views == image_3HW).all(axis=(1, 2, 3))).tolist()
    return used


def test_training_draws_all_ten_crops_anew_each_pass(store):
    first, second = (crops_used(store, train(store, batch_size=40), number) for number in (1, 2))
    assert first == crops_used(store, train(store, batch_size=8), 1), "a crop belongs to (seed, pass, row)"
    assert np.mean([first[row] != second[row] for row in first]) > 0.7  # by chance 0.9
    counts = Counter(
        crop for number in range(30) for crop in crops_used(store, train(store, batch_size=40), number).values()
    )
    assert len(counts) == 10
    assert min(counts.values()) > 80  # 1,200 draws: 120 expected, standard deviation 10


def test_validation_and_centre_training_see_the_middle(store):
    for batches in (val(store), train(store, config=dataclasses.replace(CONFIG, crops="centre"))):
        assert set(crops_used(store, batches, 1).values()) == {4}


def test_pixels_are_normalised_as_torchvision_weights_expect(store):
    black = dataclasses.replace(store, images_M3HH=np.zeros_like(store.images_M3HH))
    white = dataclasses.replace(store, images_M3HH=np.full_like(store.images_M3HH, 255))
    for made, value in ((black, 0.0), (white, 1.0)):
        image_3HW = views_of(next(train(made).passes(1)))[0].numpy()
        expected = [(value - mean) / std for mean, std in zip(stream.IMAGE_MEAN, stream.IMAGE_STD, strict=True)]
        np.testing.assert_allclose(image_3HW[:, 0, 0], expected, rtol=1e-5)


def test_images_come_once_each_in_their_central_crop(store):
    batches = val(store)
    numbers = torch.cat([image_B for _, image_B in batches.images(3)])
    assert numbers.tolist() == list(range(7))
    assert batches.n_images == 7
    views = torch.cat([image_BX for image_BX, _ in batches.images(3)])
    by_image = {
        int(batch.image_B[n]): views_of(batch)[n] for batch in batches.passes(1) for n in range(len(batch.row_B))
    }
    for number, view in zip(numbers.tolist(), views, strict=True):
        assert torch.equal(view, by_image[number])


def test_features_come_with_the_image_they_belong_to(store):
    """Row m of the features belongs to image m; texts have another width. Pictures are then not touched."""
    feature_MF = read_only(np.arange(M, dtype=np.float32)[:, None] + np.array([0.0, 0.5, 0.25], dtype=np.float32))
    text_MF = read_only(-np.arange(M, dtype=np.float32)[:, None].repeat(2, axis=1))
    without = dataclasses.replace(store, images_M3HH=None)
    given: dict[str, Any] = {"size_px": None, "feature_MF": feature_MF, "text_MF": text_MF}
    for batches in (train(without, **given), val(without, **given), train(without, rank=1, world=2, **given)):
        for batch in batches.passes(1):
            np.testing.assert_array_equal(views_of(batch), feature_MF[batch.image_B.numpy()])
            np.testing.assert_array_equal(batch.text_BF, text_MF[batch.image_B.numpy()])
    for feature_BF, image_B in val(without, **given).images(3):
        np.testing.assert_array_equal(feature_BF, feature_MF[image_B.numpy()])
    assert rows(train(without, **given)) == rows(train(store))


def test_batches_without_images_hold_only_the_rest(store):
    without = dataclasses.replace(store, images_M3HH=None)
    plain, bare = next(train(store).passes(1)), next(train(without, size_px=None).passes(1))
    assert bare.image_BX is None
    assert parts_of(plain).keys() - parts_of(bare).keys() == {"image_BX"}
    assert all(torch.equal(part, getattr(plain, name)) for name, part in parts_of(bare).items())


@pytest.mark.parametrize("size_px", [SIZE, None])
def test_features_also_move_to_another_device(store, size_px):
    feature_MF = np.ones((M, 3), dtype=np.float32)
    batches = train(store, device="meta", size_px=size_px, feature_MF=feature_MF)
    moved = views_of(next(batches.passes(1)))
    assert (moved.shape, moved.device.type) == ((12, 3), "meta")


def test_what_lies_on_a_device_is_there_once_for_all_that_use_it():
    array, meta = np.arange(6.0).reshape(2, 3), torch.device("meta")  # on which no two tensors can be told by values
    first = batching._at_home(array, meta)
    assert batching._at_home(array, meta) is first
    assert batching._at_home(array[:1], meta) is not first
    assert batching._at_home(array.copy(), meta) is not first
    assert batching._at_home(array, torch.device("cpu")).data_ptr() == array.ctypes.data
    n_known = len(batching._copies)
    del first
    gc.collect()
    assert len(batching._copies) == n_known - 1  # it goes with the last who uses it


def test_on_another_device_batches_are_made_ahead_and_moved(store):
    batches = train(store, device="meta")  # torch's device without memory: all but the values is as on a GPU
    assert batches.residency == "host"
    shapes = [(batch.eeg_BCT.shape, batch.eeg_BCT.device.type, batch.row_B.device.type) for batch in batches.passes(1)]
    assert shapes == [((12, 2, 3), "meta", "meta")] * 3
    assert train(store).residency == "device"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 41}, "train.batch_size 41 is larger than the training set of 40 segments; lower it"),
        (
            {"batch_size": 10, "world": 4},
            "train.batch_size 10 cannot be shared equally by 4 workers; use a multiple of 4",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(store, changes, message):
    with pytest.raises(InputError, match=message):
        train(store, **changes)


@pytest.mark.parametrize("changes", [{}, {"repetitions": 0}, {"control": "class-codes"}])
def test_half_the_memory_rounds_every_value_to_11_bits_wherever_it_lies(tiny, changes):
    whole = dataclasses.replace(tiny, **changes)
    half = dataclasses.replace(whole, storage="float16")
    exact, rounded = stream.load_store(whole, 32), stream.load_store(half, 32)
    assert 2 * eeg_of(rounded).nbytes == eeg_of(exact).nbytes
    np.testing.assert_array_equal(eeg_of(rounded), eeg_of(exact).astype(np.float16))
    error = np.abs(eeg_of(rounded).astype(np.float32) - eeg_of(exact))
    assert (error <= 2.0**-11 * np.maximum(np.abs(eeg_of(exact)), 2.0**-14)).all()
    wanted = {row: eeg_of(rounded)[row].astype(np.float32) for row in range(len(eeg_of(rounded)))}
    stores = {half: rounded}
    if "control" not in changes:
        stores[streamed(half)] = stream.load_store(streamed(half), 32)
    for config, store in stores.items():
        for batch in train(store, config=config, size_px=32, batch_size=10).passes(1):
            assert batch.eeg_BCT.dtype == torch.float32
            for row, eeg_CT in zip(batch.row_B.tolist(), batch.eeg_BCT.numpy(), strict=True):
                # Means that are streamed are added up in another order, so one may be rounded the other way.
                np.testing.assert_allclose(
                    eeg_CT, wanted[row], rtol=2.0**-10 if changes else 0, atol=1e-6 if changes else 0
                )


def test_half_the_memory_is_for_what_is_normalised_once(tiny):
    assert "data.storage" not in RunConfig(data=tiny).flat()  # so runs made before there was the setting go on
    with pytest.raises(InputError, match=r"data.storage 'float16' is for normalised segments; data.normalise is"):
        dataclasses.replace(tiny, storage="float16", normalise="none")
    drawn = Repeats(np.arange(4), np.array([0, 2, 4]), np.array([1, 1]))
    with pytest.raises(InputError, match="draws means anew in every pass, which are normalised after"):
        storing._stored_as(dataclasses.replace(tiny, storage="float16"), drawn)


def test_reading_needs_neither_torch_nor_ray():
    code = "import sys, eegvision.stream; sys.exit(str({'torch', 'ray', 'torchvision'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.fixture(scope="module")
def tiny(tiny_dataset) -> DataConfig:
    return DataConfig(dataset=str(tiny_dataset), val_fraction=0.2)


def streamed(config: DataConfig) -> DataConfig:
    return dataclasses.replace(config, residency="stream")


def test_a_store_holds_what_the_shards_hold(tiny, tiny_dataset):
    loaded = stream.load_store(tiny, 32)
    table = shards.read_segments(tiny_dataset, loaded.manifest, columns=["segment_id", "subject", "image_id", "eeg"])
    images = shards.read_images(tiny_dataset, loaded.manifest, columns=["image_id", "label", "encoded"])
    assert loaded.segment_id_N.tolist() == table["segment_id"].to_pylist()
    assert loaded.subject_N.tolist() == table["subject"].to_pylist()
    assert loaded.image_id_M[loaded.image_N].tolist() == table["image_id"].to_pylist()
    assert loaded.label_M.tolist() == images["label"].to_pylist()
    np.testing.assert_array_equal(loaded.label_N, loaded.label_M[loaded.image_N])
    eeg_NCT = shards.eeg_array(table["eeg"])
    np.testing.assert_array_equal(loaded.eeg_NCT, pieces.segment_zscore(eeg_NCT))
    for row in (0, 39):
        picture = pictures.decode(images["encoded"][row].as_py(), "")
        np.testing.assert_array_equal(pictures_of(loaded)[row], pieces.square(picture, 35))
    assert stream.load_store(tiny, None).images_M3HH is None
    raw = stream.load_store(dataclasses.replace(tiny, normalise="none"), 32)
    np.testing.assert_array_equal(raw.eeg_NCT, eeg_NCT)


def test_one_subject_is_the_same_split_with_less_in_memory(tiny):
    everybody = stream.load_store(tiny, 32)
    subject = str(everybody.subject_N[-1])
    alone = stream.load_store(dataclasses.replace(tiny, subjects=(subject,)), 32)
    assert set(alone.subject_N) == {subject}
    assert len(eeg_of(alone)) == 80
    for side, chosen in everybody.split.rows.items():
        own = chosen[everybody.subject_N[chosen] == subject]
        assert alone.segment_id_N[alone.split.rows[side]].tolist() == everybody.segment_id_N[own].tolist()
        np.testing.assert_array_equal(eeg_of(alone)[alone.split.rows[side]], eeg_of(everybody)[own])


def test_streamed_segments_are_the_resident_ones(tiny, monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_GROUPS", 2)  # the data set has four row groups: two windows
    resident, passing = stream.load_store(tiny, 32), stream.load_store(streamed(tiny), 32)
    assert passing.eeg_NCT is None
    batches = train(passing, config=streamed(tiny), size_px=32, batch_size=10)
    assert batches.residency == "stream"
    made = list(batches.passes(1))
    seen = torch.cat([batch.row_B for batch in made]).tolist()
    assert len(seen) == len(set(seen)) == 10 * len(batches)
    assert set(seen) <= set(resident.split.rows["train"].tolist())
    for batch in made:
        np.testing.assert_array_equal(batch.eeg_BCT, eeg_of(resident)[batch.row_B.numpy()])
    assert rows(batches, 1) == [batch.row_B.tolist() for batch in made]
    assert rows(batches, 1) != rows(batches, 2)
    for start_step in (1, 5, len(batches)):
        assert rows(batches, 1, start_step) == rows(batches, 1)[start_step:]


def test_streamed_shares_are_equal_and_apart(tiny):
    passing = stream.load_store(streamed(tiny), 32)
    shares = [train(passing, config=streamed(tiny), size_px=32, batch_size=12, rank=rank, world=3) for rank in range(3)]
    steps = [rows(share) for share in shares]
    assert [[len(step) for step in own] for own in steps] == [[4] * len(shares[0])] * 3
    seen = [row for own in steps for step in own for row in step]
    assert len(set(seen)) == len(seen)


def test_streamed_validation_is_the_resident_one(tiny):
    passing, resident = stream.load_store(streamed(tiny), 32), stream.load_store(tiny, 32)
    for rank in range(2):
        kinds = {"size_px": 32, "rank": rank, "world": 2, "batch_size": 6}
        left, right = val(passing, config=streamed(tiny), **kinds), val(resident, config=tiny, **kinds)
        assert len(left) == len(right)
        for one, other in zip(left.passes(1), right.passes(1), strict=True):
            assert_same(one, other)


def test_what_does_not_fit_into_memory_is_streamed(tiny, monkeypatch):
    monkeypatch.setattr(storing, "host_budget_bytes", lambda: 160 * 16 * 88 * 4 - 1)
    assert stream.load_store(tiny, 32).eeg_NCT is None
    assert stream.load_store(dataclasses.replace(tiny, residency="host"), 32).eeg_NCT is not None


def test_a_segment_whose_picture_is_missing_is_named(tiny_dataset, tmp_path):
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    path = copy / "images" / "part-00000.parquet"
    table = pq.read_table(path)
    names = table["image_id"].to_pylist()
    pq.write_table(table.set_column(0, "image_id", pa.array(["other", *names[1:]])), path)
    with pytest.raises(InputError, match=f"segment .* shows image '{names[0]}', which .* does not have; ingest"):
        stream.load_store(DataConfig(dataset=str(copy)), 32)


def means_by_hand(root: Path) -> dict[tuple[str, str], np.ndarray]:
    """Mean segment of every (subject, picture) over its presentations."""
    table = shards.read_segments(root, shards.read_manifest(root), columns=["subject", "image_id", "eeg"])
    rows_of = defaultdict(list)
    for row, key in enumerate(zip(table["subject"].to_pylist(), table["image_id"].to_pylist(), strict=True)):
        rows_of[key].append(row)
    eeg_NCT = shards.eeg_array(table["eeg"])
    return {key: eeg_NCT[rows].mean(axis=0) for key, rows in rows_of.items()}


@pytest.mark.parametrize("residency", ["host", "stream"])
@pytest.mark.parametrize("normalise", ["none", "segment-zscore"])
def test_all_repetitions_are_averaged_before_they_are_normalised(tiny, tiny_dataset, residency, normalise):
    config = dataclasses.replace(tiny, repetitions=0, residency=residency, normalise=normalise)
    loaded = stream.load_store(config, 32)
    expected = means_by_hand(tiny_dataset)
    assert len(loaded.image_N) == len(expected) == 80
    assert (loaded.eeg_NCT is None) == (residency == "stream")
    batches = train(loaded, config=config, size_px=32, batch_size=10)
    n_seen = 0
    for batch in batches.passes(1):
        for row, eeg_CT in zip(batch.row_B.tolist(), batch.eeg_BCT.numpy(), strict=True):
            mean_CT = expected[loaded.subject_N[row], loaded.image_id_M[loaded.image_N[row]]]
            if normalise == "segment-zscore":
                mean_CT = pieces.segment_zscore(mean_CT[None])[0]
            np.testing.assert_allclose(eeg_CT, mean_CT, rtol=1e-4, atol=1e-4)
            n_seen += 1
    assert n_seen == 10 * len(batches) > 0


@pytest.mark.parametrize("residency", ["host", "stream"])
def test_repetitions_are_drawn_anew_each_pass_and_once_for_validation(tiny, residency):
    """With two presentations of everything, two of two are the mean and one of one is either."""
    config = dataclasses.replace(tiny, repetitions=2, residency=residency)
    whole = stream.load_store(dataclasses.replace(config, repetitions=0), 32)
    np.testing.assert_array_equal(stream.load_store(config, 32).image_N, whole.image_N)
    drawn = dataclasses.replace(
        stream.load_store(config, 32), repeats=dataclasses.replace(whole.repeats, keep_N=np.ones(80, dtype=int))
    )
    if residency == "host":
        drawn = dataclasses.replace(drawn, eeg_NCT=eeg_of(stream.load_store(tiny, 32)))
        assert len(eeg_of(drawn)) == 160
    single = pieces.read_eeg(drawn.pieces, drawn.cut)["eeg"]

    def chosen(number: int) -> dict[int, int]:
        """Which presentation of each sample a pass holds."""
        found = {}
        for batch in train(drawn, config=config, size_px=32, batch_size=10).passes(number):
            for sample, eeg_CT in zip(batch.row_B.tolist(), batch.eeg_BCT.numpy(), strict=True):
                own = drawn.repeats.of(np.array([sample])).row_R
                (found[sample],) = [int(row) for row in own if np.allclose(single[row], eeg_CT, atol=1e-5)]
        return found

    first, second = chosen(1), chosen(2)
    assert first == chosen(1)
    both = first.keys() & second.keys()
    assert 0.2 < np.mean([first[sample] != second[sample] for sample in both]) < 0.8  # by chance 0.5
    one, other = (
        [batch.eeg_BCT for batch in val(drawn, config=config, size_px=32).passes(number)] for number in (1, 2)
    )
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_validation_can_average_what_training_takes_one_by_one(tiny):
    loaded = stream.load_store(dataclasses.replace(tiny, repetitions=1, val_repetitions=0), 32)
    alone = stream.load_store(tiny, 32)
    assert len(loaded.split.rows["train"]) == len(alone.split.rows["train"])
    assert 2 * len(loaded.split.rows["val"]) == len(alone.split.rows["val"])
    sample = int(loaded.split.rows["val"][0])
    np.testing.assert_allclose(loaded.read(sample), eeg_of(loaded)[sample], rtol=1e-4, atol=1e-5)


def test_batches_hold_the_channels_and_times_asked_for(tiny):
    whole = stream.load_store(dataclasses.replace(tiny, normalise="none"), 32)
    config = dataclasses.replace(tiny, normalise="none", channels=("O*",), window_s=(0.1, 0.3))
    for residency in ("host", "stream"):
        loaded = stream.load_store(dataclasses.replace(config, residency=residency), 32)
        own = [whole.manifest.channels.index(name) for name in loaded.manifest.channels]
        assert loaded.manifest.n_times == 40
        batch = next(train(loaded, config=config, size_px=32).passes(1))
        np.testing.assert_array_equal(batch.eeg_BCT, eeg_of(whole)[batch.row_B.numpy()][:, own, 20:60])


def test_a_subject_that_is_not_in_training_has_no_number(tiny):
    loaded = stream.load_store(dataclasses.replace(tiny, split="leave-subject-out", held_out="sub-01"), 32)
    assert loaded.trained_subjects == ("sub-02",)
    batches = stream.Batches(loaded, "test", config=tiny, size_px=32, batch_size=8, seed=0, training=False)
    assert {int(number) for batch in batches.passes(1) for number in batch.subject_B} == {-1}
    assert {int(number) for batch in val(loaded, config=tiny, size_px=32).passes(1) for number in batch.subject_B} == {
        0
    }


def test_reading_apart_repetitions_again_and_again_is_counted():
    """64 row groups of 10 segments: four windows of 16 groups."""
    groups = tuple(
        pieces.Piece(path=place("p"), group=n, place_n=np.arange(10), row_n=10 * n + np.arange(10)) for n in range(64)
    )
    rows = np.arange(640)
    assert storing.reads_per_pass(groups, singles(rows)) == 1
    assert storing.reads_per_pass(groups, grouped((rows // 4,), rows, 0)) == pytest.approx(1, abs=0.05)
    # A picture's two presentations in the first and the second half: the windows of the first half read both.
    assert storing.reads_per_pass(groups, grouped((rows % 320,), rows, 0)) == 1
    # In four quarters, and in an order of its own in each: one window reads all that is not its own as well.
    shuffled = np.concatenate([np.random.default_rng(n).permutation(160) for n in range(4)])
    assert storing.reads_per_pass(groups, grouped((shuffled,), rows, 0)) == 1
    everywhere = np.random.default_rng(0).permutation(640) // 2
    assert storing.reads_per_pass(groups, grouped((everywhere,), rows, 0)) > 2
