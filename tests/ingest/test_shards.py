"""eegvision.ingest.assemble and shards: what goes in comes out, whole or not at all; damage and misfits are named."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from eegvision.ingest import assemble, shards
from eegvision.ingest.places import Place, place
from eegvision.ingest.sources import Header, Part, Recording
from eegvision.vocab import Fixation, InputError, Montage, Segment, Stimulus

HEADER = Header(
    name="small",
    dialect="test",
    licence="CC0",
    montage=Montage(channels=("Oz", "Cz"), positions_m=((0.0, -0.09, 0.0), (0.0, 0.0, 0.1))),
    sfreq_hz=250.0,
    t_min_s=-0.1,
    n_times=3,
    unit="uV",
    steps=({"step": "cut", "start_sample": 0},),
    classes=("cat", "dog"),
    published={"test": ("a",)},
    truth={"sources": [[1.5, 2.0]]},
)


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 4, 3), level, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def segment(number: int, image_id: str = "a", **changes) -> Segment:
    values: dict[str, Any] = {
        "segment_id": f"s{number}",
        "subject": f"sub-{1 + number % 2:02d}",
        "session": 0,
        "block": -1,
        "order": number,
        "onset_s": float("nan"),
        "repetition": 0,
        "image_id": image_id,
        "eeg_CT": np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * number,
    }
    return Segment(**(values | changes))


def stimulus(image_id: str, level: int = 0, **changes) -> Stimulus:
    values: dict[str, Any] = {"image_id": image_id, "label": 0, "label_name": "cat", "encoded": png(level)}
    return Stimulus(**(values | changes))


def write(out: Path, n_segments: int = 5, **changes) -> shards.Manifest:
    parts: dict[str, Any] = {
        "segments": [segment(number, "ab"[number % 2]) for number in range(n_segments)],
        "stimuli": [stimulus("a", 1), stimulus("b", 2, label=1, label_name="dog")],
        "fixations": [Fixation(image_id="b", viewer="v", row_px=1.5, column_px=3.0)],
    } | changes
    return assemble.write_dataset(out, HEADER, **parts)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_goes_in_comes_out(tmp_path):
    manifest = write(tmp_path / "d", rows_per_shard=2)
    assert files(tmp_path) == [
        "d/dataset.json",
        "d/gaze/part-00000.parquet",
        "d/images/part-00000.parquet",
        "d/quality.npz",
        "d/segments/part-00000-00000.parquet",
        "d/segments/part-00000-00001.parquet",
        "d/segments/part-00000-00002.parquet",
    ]
    for field in dataclasses.fields(HEADER):
        assert getattr(manifest, field.name) == getattr(HEADER, field.name)
    assert (manifest.n_segments, manifest.n_images, manifest.subjects) == (5, 2, ("sub-01", "sub-02"))
    assert (manifest.channels, manifest.n_chans, manifest.dropped) == (("Oz", "Cz"), 2, {})
    assert manifest == shards.read_manifest(tmp_path / "d")

    table = shards.read_segments(tmp_path / "d", manifest)
    assert table.column_names == [
        "segment_id", "subject", "session", "block", "order", "onset_s", "repetition", "image_id",
    ]  # fmt: skip
    assert table["segment_id"].to_pylist() == ["s0", "s1", "s2", "s3", "s4"]
    assert table["order"].to_pylist() == [0, 1, 2, 3, 4]
    assert np.isnan(table["onset_s"].to_numpy()).all()
    eeg = shards.read_segments(tmp_path / "d", manifest, columns=["image_id", "eeg"])
    assert eeg.column_names == ["image_id", "eeg"]
    samples = pa.binary(12)
    fields = [pa.field(name, samples, nullable=False) for name in ("Oz", "Cz")]
    assert eeg.schema.field("eeg").type == pa.struct(fields)
    np.testing.assert_array_equal(shards.eeg_array(eeg["eeg"])[3], [[30, 31, 32], [33, 34, 35]])
    np.testing.assert_array_equal(shards.eeg_array(eeg["eeg"].slice(2), ["Cz"], slice(1, 3))[1], [[34, 35]])

    images = shards.read_images(tmp_path / "d", manifest)
    assert images.to_pylist()[1] == {
        "image_id": "b", "label": 1, "label_name": "dog", "height": 2, "width": 4,
        "sha256": hashlib.sha256(png(2)).hexdigest(),
    }  # fmt: skip
    encoded = shards.read_images(tmp_path / "d", manifest, columns=["encoded"])
    assert encoded["encoded"].to_pylist() == [png(1), png(2)]
    gaze = shards.read_gaze(tmp_path / "d", manifest)
    assert gaze is not None
    assert gaze.to_pylist() == [{"image_id": "b", "viewer": "v", "row_px": 1.5, "column_px": 3.0}]
    shards.verify(tmp_path / "d", manifest)


def test_without_fixations_there_is_no_gaze(tmp_path):
    manifest = write(tmp_path / "d", fixations=())
    assert not (tmp_path / "d/gaze").exists()
    assert shards.read_gaze(tmp_path / "d", manifest) is None


def test_equal_data_give_equal_bytes_and_fingerprints_and_other_data_do_not(tmp_path):
    first, again = write(tmp_path / "d1"), write(tmp_path / "d2")
    assert first == again
    for name in files(tmp_path / "d1"):
        assert (tmp_path / "d1" / name).read_bytes() == (tmp_path / "d2" / name).read_bytes()
    one_value = [segment(n, "ab"[n % 2]) for n in range(5)]
    one_value[4].eeg_CT[0, 0] += 1e-3
    assert write(tmp_path / "d3", segments=one_value).fingerprint != first.fingerprint
    renamed = assemble.write_dataset(
        tmp_path / "d4", dataclasses.replace(HEADER, licence="other"), [segment(0)], [stimulus("a")]
    )
    same = assemble.write_dataset(tmp_path / "d5", HEADER, [segment(0)], [stimulus("a")])
    assert renamed.shards == same.shards
    assert renamed.fingerprint != same.fingerprint


def test_records_are_streamed_not_collected(tmp_path):
    on_disk: list[Path] = []

    def many():
        for number in range(300):
            if number == 299:
                on_disk.extend(tmp_path.glob("d/segments/*part-*.parquet*"))
            yield segment(number)

    manifest = write(tmp_path / "d", segments=many(), fixations=(), rows_per_shard=128)
    assert [shard.rows for shard in manifest.shards if shard.path.startswith("segments/")] == [128, 128, 44]
    assert len(on_disk) == 2  # two shards were whole before the last segment was made
    with pq.ParquetFile(tmp_path / "d/segments/part-00000-00000.parquet") as file:
        assert [file.metadata.row_group(number).num_rows for number in range(2)] == [64, 64]


def given(dropped: Counter[str], *, numbers: range, log: Path | None = None) -> Iterator[Segment]:
    """Read a part; `log` gets a line every time this happens."""
    if log:
        with log.open("a") as file:
            file.write(f"{numbers.start}\n")
    dropped["too short"] += 1
    yield from (segment(number, "ab"[number % 2]) for number in numbers)


def recording(*starts: int, log: Path | None = None, key: str = "1", **changes) -> Recording:
    """Parts of three segments each, beginning at these numbers."""
    values: dict[str, Any] = {
        "header": HEADER,
        "parts": [
            Part(name=f"from {n}", rows=3, read=partial(given, numbers=range(n, n + 3), log=log), key=key)
            for n in starts
        ],
        "stimuli": [stimulus("a", 1), stimulus("b", 2, label=1, label_name="dog")],
        "dropped": Counter({"odd": 3}),
    }
    return Recording(**(values | changes))


def test_parts_are_stored_in_their_order_whatever_order_they_are_read_in(tmp_path):
    forth = assemble.write(tmp_path / "d1", recording(0, 10, 20))
    back = assemble.write(
        tmp_path / "d2", recording(0, 10, 20), each=lambda work, items: map(work, reversed(list(items)))
    )
    assert forth == back
    table = shards.read_segments(tmp_path / "d2", back)
    assert table["segment_id"].to_pylist() == [f"s{n}" for n in (0, 1, 2, 10, 11, 12, 20, 21, 22)]
    assert back.dropped == {"odd": 3, "too short": 3}


def test_images_without_segments_are_counted(tmp_path):
    stimuli = [stimulus("a"), stimulus("unseen", encoded=b"never decoded")]
    fixations = [Fixation(image_id="unseen", viewer="v", row_px=0, column_px=0)]
    manifest = write(tmp_path / "d", segments=[segment(0)], stimuli=stimuli, fixations=fixations)
    assert manifest.dropped == {"fixations on images without a segment": 1, "images without a segment": 1}
    assert manifest.n_images == 1


def test_an_interrupted_call_goes_on_with_what_is_not_finished(tmp_path):
    def interrupted(work, items):
        for done, item in enumerate(items):
            if done == 2:
                raise KeyboardInterrupt
            yield work(item)

    log, told = tmp_path / "log", []
    with pytest.raises(KeyboardInterrupt):
        assemble.write(tmp_path / "d", recording(0, 10, 20, log=log), each=interrupted)
    with pytest.raises(InputError, match="not a whole data set"):
        shards.read_manifest(tmp_path / "d")
    (tmp_path / "d/segments/part-00002-00000.parquet").write_bytes(b"half of a shard")
    manifest = assemble.write(tmp_path / "d", recording(0, 10, 20, log=log), done=lambda *done: told.append(done))
    assert log.read_text().split() == ["0", "10", "20"]
    assert told == [(3, 9)]
    assert manifest == assemble.write(tmp_path / "again", recording(0, 10, 20))
    assert files(tmp_path / "d") == files(tmp_path / "again")


def test_a_part_whose_source_has_changed_is_read_again(tmp_path):
    def fails(work, items):
        yield work(items[0])
        raise InputError("part two is bad; mend it")

    log = tmp_path / "log"
    with pytest.raises(
        InputError, match=r"mend it\n1 of 2 parts are finished and kept in .*d: the same command goes on"
    ):
        assemble.write(tmp_path / "d", recording(0, 10, log=log), each=fails)
    assert assemble.write(tmp_path / "d", recording(0, 10, log=log, key="2")).n_segments == 6
    assert log.read_text().split() == ["0", "0", "10"]


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"header": dataclasses.replace(HEADER, licence="other")}, "licence"),
        ({"parts": recording(0, 11).parts}, "parts"),
    ],
)
def test_an_unfinished_ingest_of_something_else_is_left_alone(tmp_path, changes, differing):
    def fails(work, items):
        yield work(items[0])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        assemble.write(tmp_path / "d", recording(0, 10), each=fails)
    before = files(tmp_path / "d")
    with pytest.raises(InputError, match=rf"unfinished ingest of other data .*different: {differing}.*another name"):
        assemble.write(tmp_path / "d", recording(0, 10, **changes))
    assert files(tmp_path / "d") == before
    assert assemble.write(tmp_path / "d", recording(0, 10)).n_segments == 6


def test_an_interruption_while_tidying_up_does_not_cost_the_data_set(tmp_path, monkeypatch):
    remove = Place.remove

    def interrupted(where: Place) -> None:
        remove(where)
        if where.name == ".ingest":
            raise KeyboardInterrupt

    monkeypatch.setattr(Place, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assemble.write(tmp_path / "d", recording(0, 10))
    assert shards.read_manifest(tmp_path / "d").n_segments == 6


@pytest.mark.parametrize("n_segments", [1, 700])  # fails at its end, or while there are still groups to come
def test_a_disk_that_fills_up_ends_the_writing_with_its_reason(tmp_path, monkeypatch, n_segments):
    class Full:
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(assemble.pq, "ParquetWriter", Full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "d", segments=(segment(number) for number in range(n_segments)))
    assert list(tmp_path.iterdir()) == []


def test_one_id_in_two_parts_is_refused(tmp_path):
    with pytest.raises(InputError, match="segment 's2' occurs twice"):
        assemble.write(tmp_path / "d", recording(0, 2))


NAN = np.array([[1, 2, 3], [1, np.nan, 3]], dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": []}, "has no segments"),
        ({"segments": [segment(0), segment(0)]}, "'s0' occurs twice"),
        ({"segments": [segment(1, eeg_CT=np.zeros((3, 2)))]}, r"'s1' has shape \[3, 2\].*2 channels x 3 samples"),
        ({"segments": [segment(1, eeg_CT=NAN)]}, "'s1' has NaN or infinite values in channel Cz"),
        ({"segments": [segment(1, eeg_CT=np.full((2, 3), np.inf))]}, "channel Oz, Cz"),
        ({"segments": [segment(1, eeg_CT=np.array([[1.0] * 3, [2.0] * 3]))]}, "constant in every channel"),
        ({"segments": [segment(0, "c")]}, "segment s0 shows image 'c', which is not among the stimuli"),
        ({"stimuli": [stimulus("a"), stimulus("a")]}, "image 'a' occurs twice"),
        ({"stimuli": [stimulus("a", label=2)]}, "'a' has label 2, but there are 2 classes"),
        ({"stimuli": [stimulus("a", label=-2)]}, "'a' has label -2"),
        ({"stimuli": [stimulus("a", label=1)]}, "'a' is called 'cat', but class 1 is 'dog'"),
        ({"stimuli": [stimulus("a", encoded=png(1)[:-30])]}, "picture 'a' cannot be decoded"),
        ({"fixations": [Fixation(image_id="z", viewer="v", row_px=0, column_px=0)]}, "image 'z'.* not a stimulus"),
        ({"fixations": [Fixation(image_id="a", viewer="v", row_px=2, column_px=0)]}, r"\(row 2, column 0\).*2x4"),
        ({"fixations": [Fixation(image_id="a", viewer="v", row_px=np.nan, column_px=0)]}, "row nan"),
    ],
)
def test_a_bad_record_is_named_and_leaves_nothing_behind(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "d", **changes)
    assert list(tmp_path.iterdir()) == []


def test_one_flat_channel_is_not_a_flat_segment(tmp_path):
    dead_channel = np.array([[5, 5, 5], [1, 2, 3]], dtype=np.float32)
    assert write(tmp_path / "d", segments=[segment(0, eeg_CT=dead_channel)]).n_segments == 1


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_midway_leaves_nothing_behind(tmp_path, failure):
    def breaks():
        yield from (segment(number) for number in range(200))
        raise failure

    with pytest.raises(failure):
        write(tmp_path / "d", segments=breaks(), rows_per_shard=64)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_data_set_and_the_same_call_finishes(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shards import segment, write
from pathlib import Path
def dies():
    yield from (segment(number) for number in range(200))
    os.kill(os.getpid(), signal.SIGKILL)
write(Path({str(tmp_path)!r}) / "d", segments=dies(), rows_per_shard=64)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -9
    with pytest.raises(InputError, match="not a whole data set"):
        shards.read_manifest(tmp_path / "d")
    assert write(tmp_path / "d").n_segments == 5


def test_an_existing_folder_is_never_touched(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "d")
    assert files(tmp_path) == ["d/mine.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_times": 0}, "n_times is 0"),
        ({"sfreq_hz": -1.0}, "sfreq_hz is -1.0"),
        ({"unit": "mV"}, "unit is 'mV'; it must be one of V, uV, T"),
        ({"montage": Montage(channels=("Oz", "Oz"))}, "without repeats"),
        ({"montage": Montage(channels=())}, "at least one channel"),
        ({"montage": Montage(channels=("Oz", "Cz"), positions_m=((0.0, 0.0, 0.0),))}, "one per channel"),
        ({"classes": ("cat", "cat")}, "classes"),
        ({"published": {"dev": ("a",)}}, "published"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(HEADER, **changes)


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def test_a_flipped_bit_in_the_eeg_is_found_when_it_is_read(tmp_path):
    manifest = write(tmp_path / "d", n_segments=200, rows_per_shard=128)
    path = tmp_path / "d/segments/part-00000-00001.parquet"
    position = path.read_bytes().index(segment(150).eeg_CT[0].tobytes())
    flip(path, position)
    with pytest.raises(InputError, match=r"part-00000-00001.parquet cannot be read.*checksum"):
        shards.read_segments(tmp_path / "d", manifest, columns=["eeg"])
    with pytest.raises(
        InputError, match=r"part-00000-00001.parquet is damaged: its sha256 is \w{64}, the manifest says \w{64}"
    ):
        shards.verify(tmp_path / "d", manifest)
    assert shards.read_segments(tmp_path / "d", manifest).num_rows == 200  # the other columns are intact


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("intact") / "d"
    write(root, n_segments=20, fixations=())
    return root


@settings(max_examples=60, deadline=None, database=None)
@given_by(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(intact, tmp_path_factory, share, bit):
    root = shutil.copytree(intact, tmp_path_factory.mktemp("flip") / "d")
    manifest = shards.read_manifest(root)
    path = root / "segments/part-00000-00000.parquet"
    before = shards.read_segments(root, manifest, columns=["eeg"])
    flip(path, int(share * path.stat().st_size), 1 << bit)
    with pytest.raises(InputError, match=r"part-00000-00000.parquet"):
        shards.verify(root, manifest)
    try:  # reading alone either refuses or was not concerned
        after = shards.read_segments(root, manifest, columns=["eeg"])
    except InputError:
        return
    np.testing.assert_array_equal(shards.eeg_array(after["eeg"]), shards.eeg_array(before["eeg"]))


def test_a_missing_or_exchanged_shard_is_named(tmp_path):
    manifest = write(tmp_path / "d", rows_per_shard=2)
    first, last = (tmp_path / "d/segments" / f"part-00000-0000{number}.parquet" for number in (0, 2))
    first.write_bytes(last.read_bytes())
    with pytest.raises(InputError, match=r"part-00000-00000.parquet has 1 rows, the manifest says 2"):
        shards.read_segments(tmp_path / "d", manifest)
    first.unlink()
    with pytest.raises(InputError, match=r"part-00000-00000.parquet cannot be read"):
        shards.read_segments(tmp_path / "d", manifest)
    with pytest.raises(InputError, match=r"part-00000-00000.parquet is missing"):
        shards.verify(tmp_path / "d", manifest)


def test_a_manifest_that_is_missing_cut_newer_or_edited_is_refused(tmp_path):
    write(tmp_path / "d")
    path = tmp_path / "d/dataset.json"
    whole = path.read_text()
    with pytest.raises(InputError, match="not a whole data set"):
        shards.read_manifest(tmp_path / "elsewhere")
    for content, message in (
        (whole[: len(whole) // 2], "cannot be read"),
        ("[1]", "not the manifest"),
        (json.dumps(json.loads(whole) | {"format_version": 3}), "has format 3, and this version reads up to 2"),
        (json.dumps(json.loads(whole) | {"format_version": 1}), "has format 1 of an older eegvision; remove the data"),
        (whole.replace('"sfreq_hz": 250.0', '"sfreq_hz": 500.0'), "edited or damaged"),
    ):
        assert content != whole
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            shards.read_manifest(tmp_path / "d")


def test_a_data_set_is_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "home/datasets/demo")
    write(tmp_path / "mine")
    assert shards.dataset_root("demo") == place(tmp_path / "home/datasets/demo")
    for name in ("mine", "./mine", str(tmp_path / "mine"), f"file://{tmp_path}/mine"):
        assert shards.read_manifest(shards.dataset_root(name)).n_segments == 5
    assert shards.dataset_root("mine") == shards.dataset_root("./mine") == place(tmp_path / "mine")
    for name in ("", "dmeo", "../demo"):
        with pytest.raises(InputError, match=r"there is no data set .*\(which has demo\)"):
            shards.dataset_root(name)
