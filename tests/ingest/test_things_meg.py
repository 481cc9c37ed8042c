"""eegvision.ingest.things_meg: pictures by number, test by twelve repeats, counts before anything else."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eegvision.ingest import sources, things_meg
from eegvision.ingest.prepare import Preparation
from eegvision.vocab import InputError, Segment
from mne_files import ThingsMeg, digest, write_things_meg

STEP_T = 1e-15


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> ThingsMeg:
    """Two people; 5 concepts of 3 pictures, 2 test pictures of the first two concepts."""
    return write_things_meg(tmp_path_factory.mktemp("things"), participants=2)


def read(files: ThingsMeg, **options) -> sources.Recording:
    return things_meg.read(files.source, files.images, files.metadata, **options)


def segments_of(recording: sources.Recording) -> list[Segment]:
    return [segment for part in recording.parts for segment in part.read(recording.dropped)]


def number_of(segment: Segment) -> int:
    return int(segment.segment_id.split("-")[-1])


def test_every_epoch_keeps_its_picture_concept_and_samples(things):
    recording = read(things)
    header, segments = recording.header, segments_of(recording)
    assert (header.dialect, header.unit, header.sfreq_hz, header.t_min_s, header.n_times) == (
        "things-meg", "T", 200.0, 0.0, 200,
    )  # fmt: skip
    assert len({segment.segment_id for segment in segments}) == len(segments) == 2 * (9 + 24)
    for segment in segments:
        person, number = int(segment.subject[-2:]), number_of(segment)
        assert segment.segment_id == f"sub-{person:02d}_epo-{number:05d}"
        assert (segment.session, segment.block, segment.order) == (-1, -1, number)
        assert segment.image_id == things.paths[things.row_N[person][number] - 1]
        assert digest(segment.eeg_CT, STEP_T) == digest(things.meg_NCT[person][number][:, 20:220], STEP_T)
    assert recording.dropped == {"catch trials": 6, "training pictures of test concepts": 12}
    for stimulus in recording.stimuli:
        assert header.classes[stimulus.label] == stimulus.label_name == Path(stimulus.image_id).parent.name
        assert stimulus.encoded == (things.images / stimulus.image_id).read_bytes()


def test_test_pictures_are_those_shown_twelve_times_and_share_no_concept_with_training(things):
    recording = read(things)
    published = recording.header.published
    assert published["test"] == ("images/thing0/03s.jpg", "images/thing1/03s.jpg")
    assert len(published["train"]) == 9
    assert {Path(image).parent.name for image in published["train"]} == {"thing2", "thing3", "thing4"}
    shown = Counter((segment.subject, segment.image_id) for segment in segments_of(recording))
    assert {shown["sub-01", image] for image in published["test"]} == {12}
    assert {shown["sub-02", image] for image in published["train"]} == {1}
    last = max(s.repetition for s in segments_of(recording) if s.image_id in published["test"])
    assert last == 11


def test_what_is_not_as_published_is_a_fact(things):
    facts = read(things, subjects=("sub-01",)).header.facts
    assert "preprocessed_P1-epo.fif has 3 concepts, the published set 1654" in facts
    assert "preprocessed_P1-epo.fif has 3 pictures per concept, the published set 12" in facts
    assert "preprocessed_P1-epo.fif has 2 test pictures, the published set 200" in facts
    assert "preprocessed_P1-epo.fif has 4 sensors, the published set 271" in facts


def test_a_subject_alone_and_one_that_is_not_there(things):
    assert {segment.subject for segment in segments_of(read(things, subjects=("sub-02",)))} == {"sub-02"}
    with pytest.raises(InputError, match="no subject 'sub-03'; present are sub-01, sub-02"):
        read(things, subjects=("sub-03",))


def as_recorded(files: ThingsMeg, segment: Segment) -> bool:
    number = number_of(segment)
    is_picture = segment.image_id == files.paths[files.row_N[1][number] - 1]
    return is_picture and digest(segment.eeg_CT, STEP_T) == digest(files.meg_NCT[1][number][:, 20:220], STEP_T)


def test_a_missing_epoch_is_refused_or_said_and_moves_no_other(tmp_path):
    files = write_things_meg(tmp_path, missing=[9])
    with pytest.raises(
        InputError, match=r"preprocessed_P1-epo.fif: concept 3 has 2 pictures, others 3: .*--on-bad drop"
    ):
        read(files)
    recording = read(files, on_bad="drop")
    assert "preprocessed_P1-epo.fif: concept 3 has 2 pictures, others 3" in recording.header.facts
    segments = segments_of(recording)
    assert len(segments) == 8 + 24
    assert all(as_recorded(files, segment) for segment in segments)


def test_a_picture_shown_too_often_or_a_test_repeat_that_is_missing_is_refused_or_left_out(tmp_path):
    files = write_things_meg(tmp_path, test_repeats=13, test_concepts=1)
    with pytest.raises(InputError, match="no picture that was shown 12 times"):
        read(files)
    files = write_things_meg(tmp_path / "b", extra=[9, 9])
    with pytest.raises(InputError, match=r"picture 9 was shown 3 times, neither once nor 12 times.*--on-bad drop"):
        read(files)
    recording = read(files, on_bad="drop")
    segments = segments_of(recording)
    assert recording.dropped["pictures shown neither once nor 12 times"] == 3
    assert all(as_recorded(files, segment) for segment in segments)
    assert len(segments) == 8 + 24


def test_a_concept_tested_in_one_person_trains_nobody(tmp_path):
    one = write_things_meg(tmp_path / "a")
    two = write_things_meg(tmp_path / "b", test_concepts=1)
    shutil.copy(two.source / "preprocessed_P1-epo.fif", one.source / "preprocessed_P2-epo.fif")
    recording = read(one)
    concepts = {split: {Path(image).parent.name for image in ids} for split, ids in recording.header.published.items()}
    assert concepts == {"train": {"thing2", "thing3", "thing4"}, "test": {"thing0", "thing1"}}
    assert recording.dropped["training pictures of test concepts"] == 6 + 6


def test_baseline_z_scores_are_recognised_though_the_file_says_tesla(tmp_path):
    recording = read(write_things_meg(tmp_path, baseline_z=True))
    assert recording.header.unit == "zscore"
    assert any("z-scores of each epoch's baseline" in fact for fact in recording.header.facts)


def test_the_pictures_of_things_eeg2_are_not_the_ones(things, tmp_path):
    folder = tmp_path / "training_images" / "00001_aardvark"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match=r"11 of 11 are missing.*not the image set of THINGS-EEG2"):
        things_meg.read(things.source, tmp_path, things.metadata)


def test_pictures_may_start_below_the_folder_of_the_list(things):
    recording = things_meg.read(things.source, things.images / "images", things.metadata)
    assert {s.image_id for s in recording.stimuli} == {s.image_id for s in read(things).stimuli}


def change_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        path.write_text("\n".join(change(path.read_text().split())) + "\n")

    return rewrite


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("image_paths.csv", change_lines(lambda lines: lines[:-1]), "has 19 pictures, .* 20; both must"),
        ("image_paths.csv", change_lines(lambda lines: lines[1:] + lines[:1]), "line 4: .* is of concept 1, others of"),
        ("image_paths.csv", change_lines(lambda lines: [lines[0], *lines[:-1]]), "of concept 2|twice"),
        ("image_paths.csv", change_lines(lambda lines: ["x.jpg", *lines[1:]]), "line 1: 'x.jpg' is of concept 1"),
        ("image_concept_index.csv", change_lines(lambda lines: ["0", *lines[1:]]), "line 1: '0' is no concept number"),
        ("image_concept_index.csv", change_lines(lambda lines: ["x", *lines[1:]]), "line 1: 'x' is no concept number"),
        ("image_paths.csv", Path.unlink, "has no image_paths.csv; give THINGS' folder Metadata"),
        ("image_paths.csv", lambda path: path.write_bytes(b"\xff\n"), "cannot be read"),
    ],
)  # fmt: skip
def test_lists_that_do_not_belong_together_are_refused(things, tmp_path, name, change, message):
    metadata = tmp_path / "Metadata"
    shutil.copytree(things.metadata, metadata)
    change(next(metadata.rglob(name)))
    with pytest.raises(InputError, match=message):
        things_meg.read(things.source, things.images, metadata)


def test_events_outside_the_list_are_refused(tmp_path):
    files = write_things_meg(tmp_path)
    for name in ("image_paths.csv", "image_concept_index.csv"):
        change_lines(lambda lines: lines[:8])(next(files.metadata.rglob(name)))
    with pytest.raises(InputError, match=r"event \d+ is no picture of .*image_paths.csv, which has 8; .*1 to 26107"):
        read(files)


def test_a_folder_without_the_files_is_refused(things, tmp_path):
    with pytest.raises(InputError, match=r"there is no preprocessed_P1-epo.fif"):
        things_meg.read(tmp_path, things.images, things.metadata)


def test_files_are_read_in_ranges_unless_a_scale_needs_all_of_a_person(things, monkeypatch):
    monkeypatch.setattr(things_meg, "_ROWS_PER_PART", 20)
    assert [part.rows for part in read(things).parts] == [20, 13, 20, 13]
    recording = read(things, preparation=Preparation(scale="zscore"))
    assert [part.rows for part in recording.parts] == [33, 33]
    assert recording.header.unit == "zscore"
    assert recording.header.steps[-1]["fitted_on"] == "training epochs of each person"
    train = set(recording.header.published["train"])
    for part in recording.parts:
        values = np.stack([segment.eeg_CT for segment in part.read(Counter()) if segment.image_id in train])
        np.testing.assert_allclose(values.std(axis=(0, 2)), 1, atol=1e-2)
