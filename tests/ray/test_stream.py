"""eegvision.stream on a local Ray: the same arrays as alone, made once for all processes, whoever holds the CPUs."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from eegvision import stream
from eegvision.config import DataConfig
from eegvision.ingest import pieces, shards
from eegvision.ingest.places import place
from eegvision.stream import spread
from eegvision.vocab import InputError

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def tiny(tiny_dataset) -> DataConfig:
    return DataConfig(dataset=str(tiny_dataset), val_fraction=0.2)


def test_ray_data_gives_what_threads_give_in_the_same_order(tiny_dataset):
    found = pieces.all_pieces(tiny_dataset, shards.read_manifest(tiny_dataset), "segments")
    assert len(found) == 4
    plan = [found[2:], found[:1], found[1:2]]
    cut, _ = pieces.cut_of(shards.read_manifest(tiny_dataset), (), None, "segment-zscore")
    work = partial(pieces.read_eeg, cut=cut)
    alone, together = (list(spread.in_order(plan, work, on_cluster=where)) for where in (False, True))
    for name in ("row", "eeg"):
        left, right = (np.concatenate([rows[name] for rows in parts]) for parts in (alone, together))
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("on_cluster", [False, True])
def test_damage_found_by_a_task_reaches_the_user_as_it_is(tiny_dataset, on_cluster):
    (gone,) = pieces.all_pieces(tiny_dataset, shards.read_manifest(tiny_dataset), "images")
    gone = dataclasses.replace(gone, path=place(tiny_dataset / "images" / "part-00009.parquet"))
    with pytest.raises(InputError, match=r"^shard .*part-00009\.parquet cannot be read") as caught:
        list(spread.in_order([gone], partial(pieces.read_images, side_px=8), on_cluster=on_cluster))
    assert type(caught.value) is InputError


def test_damage_found_by_the_shelf_reaches_the_user_as_it_is():
    def broken() -> np.ndarray:
        from eegvision.vocab import InputError

        raise InputError("shard x is damaged")

    with pytest.raises(InputError, match=r"^shard x is damaged$") as caught:
        spread.shared(("broken",), broken)
    assert type(caught.value) is InputError


def test_arrays_are_made_once_and_shared(tiny):
    first, second = stream.load_store(tiny, 32), stream.load_store(tiny, 32)
    assert first.eeg_NCT is not None
    assert second.eeg_NCT is not None
    assert first.eeg_NCT.ctypes.data == second.eeg_NCT.ctypes.data
    assert first.images_M3HH is not None
    assert second.images_M3HH is not None
    assert first.images_M3HH.ctypes.data == second.images_M3HH.ctypes.data
    assert not first.eeg_NCT.flags.writeable
    larger = stream.load_store(tiny, 40)
    assert larger.eeg_NCT is not None
    assert larger.eeg_NCT.ctypes.data == first.eeg_NCT.ctypes.data
    assert larger.images_M3HH is not None
    assert larger.images_M3HH.shape == (40, 3, 44, 44)


@pytest.mark.parametrize("residency", ["host", "stream"])
def test_workers_that_hold_every_cpu_are_served(tiny, ray_local, residency):
    config = dataclasses.replace(tiny, residency=residency)

    @ray_local.remote(num_cpus=2)
    def trial() -> list[list[int]]:
        from eegvision import stream

        store = stream.load_store(config, 32)
        batches = stream.Batches(
            store, "train", config=config, size_px=32, batch_size=10, seed=1, training=True, rank=1, world=2
        )
        return [batch.row_B.tolist() for batch in batches.passes(1)]

    here = stream.Batches(
        stream.load_store(config, 32), "train", config=config, size_px=32, batch_size=10, seed=1, training=True,
        rank=1, world=2,
    )  # fmt: skip
    assert ray_local.get(trial.remote(), timeout=120) == [batch.row_B.tolist() for batch in here.passes(1)]


def test_arrays_outlive_their_shelf_and_are_made_again(ray_local):
    first = spread.shared(("numbers",), lambda: np.arange(1e6))
    context = ray_local.get_runtime_context()
    ray_local.kill(spread._shelf(context.gcs_address, context.get_job_id()))  # as when its creator, a trial, ends
    second = spread.shared(("numbers",), lambda: np.arange(1e6))
    assert first.ctypes.data != second.ctypes.data
    assert first.sum() == second.sum() == 499999500000


def test_a_process_makes_the_arrays_itself_when_the_shelf_stays_out_of_reach(ray_local, monkeypatch, caplog):
    class Gone:
        class get:  # noqa: N801
            @staticmethod
            def remote(*_: object) -> None:
                raise ray_local.exceptions.ActorUnavailableError("its machine is gone", None)

    def shelf(*_: object) -> type[Gone]:
        return Gone

    shelf.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(spread, "_shelf", shelf)
    monkeypatch.setattr(spread, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(spread, "_AGAIN_S", 0.02)
    assert spread.shared(("out of reach",), lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert "this process makes its own" in caplog.text
