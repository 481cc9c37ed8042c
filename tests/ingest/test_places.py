"""eegvision.ingest.places: the same on a disk and in a bucket (an S3 server on this machine); whole files or none."""

from pathlib import Path

import numpy as np
import pytest

from eegvision import stream
from eegvision.config import DataConfig
from eegvision.ingest import assemble, shards, simulate
from eegvision.ingest.places import Place, place
from eegvision.vocab import InputError


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path) -> Place:
    if request.param == "disk":
        return place(tmp_path / "eeg")
    return place(request.getfixturevalue("bucket")) / request.node.originalname


def test_files_are_written_listed_read_and_removed(folder):
    assert not folder.exists()
    assert folder.files() == []
    (folder / "a/b.txt").write(b"one")
    (folder / "a/b.txt").write(b"two")
    (folder / "c.txt").write(b"three")
    assert folder.files() == ["a/b.txt", "c.txt"]
    assert (folder / "a/b.txt").read() == b"two"
    assert (folder / "a/b.txt").name == "b.txt"
    with pytest.raises(FileNotFoundError):
        (folder / "d.txt").read()
    (folder / "c.txt").remove()
    (folder / "c.txt").remove()
    assert folder.files() == ["a/b.txt"]
    folder.remove()
    assert folder.files() == []


def test_a_failure_while_writing_leaves_the_old_file_or_none(folder):
    (folder / "old").write(b"old")

    def fails(target: Place) -> None:
        with target.writing() as file:
            file.write(b"half")
            raise RuntimeError

    for name in ("old", "new"):
        with pytest.raises(RuntimeError):
            fails(folder / name)
    assert folder.files() == ["old"]
    assert (folder / "old").read() == b"old"
    folder.remove()


def test_a_data_set_in_a_bucket_is_the_one_on_disk(bucket, tiny_dataset):
    root = place(bucket) / "tiny"
    manifest = assemble.write(root, simulate.simulate(simulate.PRESETS["tiny"], "tiny"))
    assert [name for name in root.files() if ".ingest" in name] == []
    shards.verify(root, manifest)
    config = DataConfig(dataset=root.address, val_fraction=0.2, channels=("O*",), window_s=(0.1, 0.3))
    there = stream.load_store(config, 32)
    here = stream.load_store(
        DataConfig(dataset=str(tiny_dataset), val_fraction=0.2, channels=("O*",), window_s=(0.1, 0.3)), 32
    )
    assert there.eeg_NCT is not None
    assert here.eeg_NCT is not None
    np.testing.assert_array_equal(there.eeg_NCT, here.eeg_NCT)
    np.testing.assert_array_equal(there.images_M3HH, here.images_M3HH)
    with pytest.raises(InputError, match=r"no data set at s3://lab/eeg/other.*; ingest it first"):
        shards.dataset_root((place(bucket) / "other").address)


def test_an_address_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(
        InputError, match=r"must not hold keys or passwords.*before the @ of 'lab'.*AWS_ACCESS_KEY_ID"
    ) as caught:
        place("s3://AKIA:secret@lab/eeg")
    assert "secret" not in str(caught.value)


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(
        InputError, match=r"ftp://lab.*cannot be opened.*give a path, or an address such as s3://bucket"
    ):
        place("ftp://lab/eeg")


def test_paths_become_absolute_and_addresses_keep_their_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place("here") == place(Path("here")) == Place(str(tmp_path / "here"))
    assert str(Place("s3://lab/eeg?region=eu") / "a/b") == "s3://lab/eeg/a/b?region=eu"
    assert (Place("s3://lab/eeg?region=eu") / "a/b").name == "b"
