"""eegvision.ingest.mne_epochs and events: every format round trip, every way a table can be wrong, damaged files."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from eegvision.ingest import mne_epochs, sources
from eegvision.ingest.prepare import Preparation
from eegvision.vocab import InputError, Segment
from mne_files import (
    BY_EVENT,
    CHANNELS,
    CODES,
    IMAGES,
    SFREQ_HZ,
    Lab,
    as_raw,
    by_presentation,
    design,
    digest,
    write_bids,
    write_epochs,
    write_raw,
    write_table,
)

WINDOW = Preparation(window_s=(0.0, 0.4))


def segments_of(recording: sources.Recording) -> list[Segment]:
    """All segments; drops of the parts are added to those of the recording."""
    return [segment for part in recording.parts for segment in part.read(recording.dropped)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Lab:
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def epochs(tmp_path_factory) -> Lab:
    return write_epochs(tmp_path_factory.mktemp("epochs"))


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> tuple[Path, dict[str, Lab]]:
    folder = tmp_path_factory.mktemp("bids")
    return folder, write_bids(folder)


def read(lab: Lab, folder: Path, rows: Sequence[dict[str, Any]] | None, **options) -> sources.Recording:
    table = None if rows is None else write_table(folder / "events.csv", rows)
    preparation = options.pop("preparation", WINDOW if "epo" not in lab.recording.name else Preparation())
    return mne_epochs.read([lab.recording], lab.images, table, preparation=preparation, **options)


def assert_all_there(segments: Sequence[Segment], lab: Lab, from_sample: int = 0, to_sample: int = 100) -> None:
    assert [segment.image_id for segment in segments] == [IMAGES[image] for image in lab.image_N]
    for number, segment in enumerate(segments):
        assert segment.eeg_CT.dtype == np.float32
        assert digest(segment.eeg_CT) == digest(lab.window(number, from_sample, to_sample))


@pytest.mark.parametrize("kind", ["fif", "edf", "brainvision", "eeglab"])
def test_a_continuous_recording_keeps_every_sample_event_and_picture(tmp_path, kind):
    lab = write_raw(tmp_path, kind)
    recording = read(lab, tmp_path, BY_EVENT)
    header, segments = recording.header, segments_of(recording)
    assert_all_there(segments, lab)
    assert (header.dialect, header.unit, header.sfreq_hz, header.t_min_s, header.n_times) == ("mne", "V", 250, 0, 100)
    assert (header.montage.channels, header.classes, header.published) == (CHANNELS, ("cat", "dog"), {})
    assert [segment.order for segment in segments] == list(range(12))
    assert [segment.onset_s for segment in segments] == [sample / SFREQ_HZ for sample in lab.sample_N]
    assert {(segment.subject, segment.session, segment.block) for segment in segments} == {("sub-01", 2, -1)}
    assert segments[3].segment_id == "sub-01_ses-02_tr-00003"
    shown: Counter[str] = Counter()
    for segment in segments:
        assert segment.repetition == shown[segment.image_id]
        shown[segment.image_id] += 1
    pictures = {stimulus.image_id: stimulus for stimulus in recording.stimuli}
    assert sorted(pictures) == sorted(IMAGES)
    assert (pictures["dog/ee.jpg"].label, pictures["dog/ee.jpg"].label_name) == (1, "dog")
    assert pictures["cat/bb.jpg"].encoded == (lab.images / "cat/bb.jpg").read_bytes()


@pytest.mark.parametrize("kind", ["fif", "eeglab"])
def test_epochs_keep_every_sample_event_and_picture(tmp_path, kind):
    lab = write_epochs(tmp_path, kind)
    recording = read(lab, tmp_path, BY_EVENT, preparation=Preparation())
    segments = segments_of(recording)
    assert_all_there(segments, lab, -25, 101)
    assert (recording.header.t_min_s, recording.header.n_times) == (-0.1, 126)
    assert all(np.isnan(segment.onset_s) for segment in segments)
    assert [segment.order for segment in segments] == list(range(12))


def test_bids_tells_subject_session_run_events_and_pictures(bids):
    folder, labs = bids
    recording = mne_epochs.read([folder], folder / "images", preparation=WINDOW)
    assert recording.dropped == {"events marked as showing no picture": 4}
    assert len(recording.parts) == 4
    for part, (name, lab) in zip(recording.parts, labs.items(), strict=True):
        segments = list(part.read(Counter()))
        assert_all_there(segments, lab)
        assert {f"{segment.subject}_ses-01_task-look_run-{segment.block}_eeg.vhdr" for segment in segments} == {name}
    segments = segments_of(recording)
    assert [segment.order for segment in segments] == [*range(24), *range(24)]
    assert len({segment.segment_id for segment in segments}) == 48
    assert any("marks bad channels" in fact or "O2 (in 4)" in fact for fact in recording.header.facts)
    one = mne_epochs.read([folder], folder / "images", preparation=WINDOW, subjects=("sub-02",), tasks=("look",))
    assert [segment.segment_id for segment in segments_of(one)] == [s.segment_id for s in segments[24:]]
    with pytest.raises(InputError, match="no task 'rest', only look"):
        mne_epochs.read([folder], folder / "images", preparation=WINDOW, tasks=("rest",))
    with pytest.raises(InputError, match=r"no subject sub-09; present are sub-01, sub-02"):
        mne_epochs.read([folder], folder / "images", preparation=WINDOW, subjects=("09",))


def test_bids_events_can_be_mapped_by_a_table(bids, tmp_path):
    folder, labs = bids
    table = write_table(tmp_path / "t.tsv", [*BY_EVENT, {"event": "answer", "image": ""}])
    recording = mne_epochs.read([folder], folder / "images", table, preparation=WINDOW)
    assert recording.dropped == {"events marked as showing no picture": 4}
    assert_all_there(segments_of(recording)[:12], labs["sub-01_ses-01_task-look_run-1_eeg.vhdr"])


def test_bids_onsets_outside_or_at_odds_with_the_column_sample_are_refused(bids, tmp_path):
    whole, _ = bids
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    tsv = folder / "sub-01/ses-01/eeg/sub-01_ses-01_task-look_run-1_events.tsv"
    text = tsv.read_text()
    tsv.write_text(text.replace("\t3375\t", "\t3371\t"))
    with pytest.raises(InputError, match=r"line 14: onset 13.5 s is sample 3375 at the 250 Hz.*says 3371"):
        mne_epochs.read([folder], folder / "images", preparation=WINDOW)
    tsv.write_text(text.replace("13.5\t0\t3375", "14.5\t0\t3625"))
    with pytest.raises(InputError, match=r"line 14: onset 14.5 s lies outside .* lasts 14 s"):
        mne_epochs.read([folder], folder / "images", preparation=WINDOW)


@pytest.mark.parametrize("columns", [("sample",), ("onset_s",), ("sample", "onset_s"), ("sample", "event")])
def test_a_row_per_presentation_is_as_good_as_event_codes(raw, tmp_path, columns):
    rows = by_presentation(raw, "image", *columns)
    recording = read(raw, tmp_path, rows[::-1])
    assert_all_there(segments_of(recording), raw)


def test_a_row_per_epoch_is_compared_with_the_events(epochs, tmp_path):
    rows = by_presentation(epochs, "image", "epoch", "event", "label", "split")
    recording = read(epochs, tmp_path, rows)
    assert_all_there(segments_of(recording), epochs, -25, 101)
    assert recording.header.classes == ("c", "d")
    assert recording.header.published == {"train": IMAGES[:5], "test": IMAGES[5:]}
    shifted = [{**row, "event": rows[number - 1]["event"]} for number, row in enumerate(rows)]
    with pytest.raises(InputError, match=r"line \d+: epoch \d+ is event '\d+', but .* has 'picture/\d+' there"):
        read(epochs, tmp_path, shifted)
    with pytest.raises(
        InputError, match=r"has 11 rows with epoch 0 to 10 .* which has 12 epochs; give one row for each"
    ):
        read(epochs, tmp_path, rows[:-1])
    with pytest.raises(InputError, match=r"lines 13 and 14 both say what epoch 11.0 shows"):
        read(epochs, tmp_path, [*rows, rows[-1]])


def test_metadata_of_epochs_and_texts_of_events_may_name_the_pictures(tmp_path):
    names = [IMAGES[image] for image in design()[2]]
    lab = write_epochs(tmp_path / "a", metadata={"stim_file": names})
    assert_all_there(segments_of(read(lab, tmp_path, None)), lab, -25, 101)
    lab = write_raw(tmp_path / "b", codes=IMAGES)
    assert_all_there(segments_of(read(lab, tmp_path, None)), lab)
    lab = write_raw(tmp_path / "c")
    with pytest.raises(
        InputError, match=r"events that are not pictures of .* no --table that says what they show: '\d+' \(2 times\)"
    ):
        read(lab, tmp_path, None)
    with pytest.raises(InputError, match="has no columns, so none is called 'stim'; give the --table they are in"):
        read(lab, tmp_path, None, image_column="stim")


def without(rows: Sequence[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != column} for row in rows]


def put(rows: Sequence[dict[str, Any]], number: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if at == number else row for at, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: without(rows, "image"), r"no column 'image' .* only event, onset_s"),
        (lambda rows: without(without(rows, "event"), "onset_s"), r"none of the columns .* one of event, onset_s"),
        (lambda rows: [{**row, "epoch": 0} for row in rows], r"columns onset_s and epoch .* exactly one"),
        (lambda rows: put(rows, 2, image="cat/zz.jpg"), r"line 4: there is no picture 'cat/zz.jpg' .*is '...jpg'"),
        (lambda rows: put(rows, 2, image="../a.jpg"), r"line 4: the name '../a.jpg' leads out"),
        (lambda rows: put(rows, 2, image="cat\\aa.jpg"), r"line 4: .* has backslashes; write 'cat/aa.jpg'"),
        (lambda rows: put(rows, 2, onset_s="x"), r"line 4: column onset_s is 'x'; it must be seconds"),
        (lambda rows: put(rows, 2, onset_s="nan"), r"line 4: column onset_s is 'nan'"),
        (lambda rows: put(rows, 2, onset_s=14.2), r"line 4: onset_s 14.2 lies outside .* 3500 samples \(14 s\)"),
        (lambda rows: put(rows, 2, onset_s=-1), r"line 4: onset_s -1 lies outside"),
        (lambda rows: put(rows, 2, onset_s=rows[1]["onset_s"]), r"lines 3 and 4 both say what onset_s"),
        (lambda rows: put(rows, 2, event=99), r"line 4: onset_s .* is event '99', but .* has '\d+' there"),
        (lambda rows: put(rows, 2, block="b"), r"line 4: column block is 'b'"),
        (lambda rows: put(rows, 2, split="training"), r"line 4: column split is 'training'; .* train, val, test"),
        (lambda rows: put(rows, 2, split=""), r"line 4: column split is empty, but others are filled"),
        (lambda rows: put(rows, 2, split="val"), r"image '.*' has two splits: '.*' \(.*line \d+\) and '.*' \(.*line"),
        (lambda rows: put(rows, 2, label="x"), r"image '.*' has two labels"),
        (lambda rows: [{**row, "subject": "02"} for row in rows], r"no row for .*columns file, subject"),
        (lambda rows: [{**row, "subject": "a b"} for row in rows], r"column subject is 'a b'; use letters"),
        (lambda rows: [{**row, "file": "other.fif"} for row in rows], r"no row for .*sub-01_ses-02_eeg_raw.fif"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_table_is_named(raw, tmp_path, change, message):
    rows = [{**row, "block": 1} for row in by_presentation(raw, "image", "event", "onset_s", "label", "split")]
    with pytest.raises(InputError, match=message):
        read(raw, tmp_path, change(rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'image'"),
        ("event,image\n", "has no rows below its header"),
        ("event,event,image\n1,2,a\n", "column 'event' twice"),
        ("event,image\n11,cat/aa.jpg,x\n", "line 2 has 3 values, the header 2 columns"),
        ('event,image\n11,"cat/aa.jpg\n', "line 2: unexpected end of data; mend the quotes"),
        ("event,image\n,cat/aa.jpg\n", "line 2: column event is empty"),
        ("event,image\n11,cat/\0a.jpg\n", "no text; save it again as CSV UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused(raw, tmp_path, text, message):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        mne_epochs.read([raw.recording], raw.images, table, preparation=WINDOW)


def test_tables_of_spreadsheets_are_understood(raw, tmp_path):
    table = tmp_path / "t.csv"
    table.write_bytes(
        "\ufeffevent;image\r\n".encode() + "".join(f"{r['event']};{r['image']}\r\n" for r in BY_EVENT).encode()
    )
    recording = mne_epochs.read([raw.recording], raw.images, table, preparation=WINDOW)
    assert_all_there(segments_of(recording), raw)
    table.write_bytes("event,image\n11,k\xe4se.jpg\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        mne_epochs.read([raw.recording], raw.images, table, preparation=WINDOW)


def test_events_and_codes_that_do_not_meet_are_refused_or_counted(raw, tmp_path):
    with pytest.raises(InputError, match=r"line 8: event '31' never occurs.*--on-bad drop"):
        read(raw, tmp_path, [*BY_EVENT, {"event": 31, "image": IMAGES[0]}])
    recording = read(raw, tmp_path, [*BY_EVENT, {"event": 31, "image": IMAGES[0]}], on_bad="drop")
    assert (len(segments_of(recording)), recording.dropped) == (12, {"table rows whose event never occurs": 1})
    with pytest.raises(
        InputError, match=r"has events that are not in .*: '23' \(2 times\).*empty image.*--on-bad drop"
    ):
        read(raw, tmp_path, BY_EVENT[:-1])
    recording = read(raw, tmp_path, BY_EVENT[:-1], on_bad="drop")
    assert (len(segments_of(recording)), recording.dropped) == (10, {"events without a picture": 2})
    recording = read(raw, tmp_path, put(BY_EVENT, 5, image="n/a"))
    assert (len(segments_of(recording)), recording.dropped) == (10, {"events marked as showing no picture": 2})
    with pytest.raises(InputError, match="lines 2 and 8 both say what event 11 shows"):
        read(raw, tmp_path, [*BY_EVENT, BY_EVENT[0]])
    with pytest.raises(InputError, match=r"no presentation is left \(events marked as showing no picture: 12\)"):
        read(raw, tmp_path, [{**row, "image": ""} for row in BY_EVENT])


def test_a_code_that_may_mean_two_events_is_refused(tmp_path):
    lab = write_raw(tmp_path, annotations=[(13.5, 0, "Response/R 11")], codes=[f"Stimulus/S {code}" for code in CODES])
    with pytest.raises(InputError, match=r"line 2: event '11' may mean 'Response/R 11' or 'Stimulus/S 11'"):
        read(lab, tmp_path, BY_EVENT)
    rows = [{**row, "event": f"S{row['event']}"} for row in BY_EVENT] + [{"event": "R11", "image": ""}]
    assert_all_there(segments_of(read(lab, tmp_path, rows)), lab)


def test_onset_and_sample_that_disagree_reveal_a_wrong_rate(raw, tmp_path):
    rows = [{**row, "onset_s": row["sample"] / 256} for row in by_presentation(raw, "image", "sample")]
    with pytest.raises(InputError, match=r"sample \d+ and onset_s .* disagree at the 250 Hz"):
        read(raw, tmp_path, rows)


def test_windows_over_the_ends_bad_spans_and_breaks_are_left_out_by_name(tmp_path):
    _, sample_N, _ = design()
    at = [sample / SFREQ_HZ for sample in sample_N]
    notes = [(at[2] + 0.1, 0.05, "BAD_blink"), (at[4] + 0.3, 0.0, "boundary"), (0.0, 0.0, "New Segment/")]
    lab = write_raw(tmp_path, annotations=notes)
    recording = read(lab, tmp_path, BY_EVENT)
    assert recording.dropped == {"overlaps an annotation named BAD": 1, "crosses a break in the recording": 1}
    segments = segments_of(recording)
    assert [segment.order for segment in segments] == [0, 1, 3, *range(5, 12)]
    assert digest(segments[3].eeg_CT) == digest(lab.window(5))
    long = Preparation(window_s=(-1.2, 0.4))
    with pytest.raises(InputError, match=r"window of .*line \d+ at .* s reaches over the ends.*--on-bad drop"):
        read(lab, tmp_path, BY_EVENT, preparation=long)
    recording = read(lab, tmp_path, BY_EVENT, preparation=long, on_bad="drop")
    assert recording.dropped["window reaches over the ends of the recording"] == 1


def test_epochs_that_overlap_a_bad_annotation_are_left_out(tmp_path):
    _, sample_N, _ = design()
    lab = write_epochs(tmp_path, annotations=[(sample_N[3] / SFREQ_HZ + 0.2, 0.1, "bad muscle")])
    recording = read(lab, tmp_path, BY_EVENT)
    assert recording.dropped == {"overlaps an annotation named BAD": 1}
    assert [segment.order for segment in segments_of(recording)] == [0, 1, 2, *range(4, 12)]


def test_faulty_segments_are_refused_or_counted(tmp_path):
    lab = write_raw(tmp_path)
    eeg_CS = lab.eeg_CS.copy()
    eeg_CS[1, lab.sample_N[0] + 5] = np.nan
    eeg_CS[:, lab.sample_N[4] : lab.sample_N[4] + 100] = 0
    faulty = as_raw(eeg_CS)
    faulty.set_annotations(mne.io.read_raw_fif(lab.recording, verbose="error").annotations)
    faulty.save(lab.recording, fmt="double", overwrite=True, verbose="error")
    with pytest.raises(InputError, match=r"segment sub-01_ses-02_tr-00000 .*: NaN or infinite EEG; .*--on-bad drop"):
        segments_of(read(lab, tmp_path, BY_EVENT))
    recording = read(lab, tmp_path, BY_EVENT, on_bad="drop")
    assert [segment.order for segment in segments_of(recording)] == [1, 2, 3, *range(5, 12)]
    assert recording.dropped == {"NaN or infinite EEG": 1, "EEG constant in every channel": 1}


def test_samples_of_another_unit_are_refused(tmp_path):
    lab = write_raw(tmp_path)
    raw = mne.io.read_raw_fif(lab.recording, preload=True, verbose="error")
    raw.apply_function(lambda x: x * 1e6)
    raw.save(lab.recording, overwrite=True, verbose="error")
    with pytest.raises(InputError, match=r"cannot be V but looks like uV"):
        read(lab, tmp_path, BY_EVENT)


def stim_raw(folder: Path, **stims: np.ndarray) -> Lab:
    """A recording with stimulus channels instead of annotations."""
    lab = write_raw(folder)
    raw = as_raw(lab.eeg_CS)
    for name, values in stims.items():
        info = mne.create_info([name], SFREQ_HZ, "stim")
        raw.add_channels([mne.io.RawArray(values[None], info, verbose="error")], force_update_info=True)
    raw.save(lab.recording, overwrite=True, fmt="double", verbose="error")
    return lab


def pulses(lab_sample_N: Sequence[int], image_N: Sequence[int], length: int) -> np.ndarray:
    values = np.zeros(3500)
    for sample, image in zip(lab_sample_N, image_N, strict=True):
        values[sample : sample + length] = CODES[image]
    return values


def test_events_of_a_stimulus_channel_and_which_one(tmp_path):
    _, sample_N, image_N = design()
    codes = pulses(sample_N, image_N, 5)
    assert_all_there(
        segments_of(read(stim_raw(tmp_path / "a", STI101=codes), tmp_path, BY_EVENT)), write_raw(tmp_path / "x")
    )
    lab = stim_raw(tmp_path / "b", STI101=codes, STI102=np.roll(codes, 7))
    with pytest.raises(
        InputError, match=r"several places: STI101 \(12\), STI102 \(12\); choose one with --stim-channel"
    ):
        read(lab, tmp_path, BY_EVENT)
    assert_all_there(segments_of(read(lab, tmp_path, BY_EVENT, stim_channel="STI101")), lab)
    with pytest.raises(InputError, match="no stimulus channel 'X'; there are STI101, STI102"):
        read(lab, tmp_path, BY_EVENT, stim_channel="X")
    with pytest.raises(InputError, match="has no events"):
        read(stim_raw(tmp_path / "c", STI101=np.zeros(3500)), tmp_path, BY_EVENT)
    held = np.cumsum(pulses(sample_N, [0] * 12, 1)) % 7
    with pytest.raises(InputError, match="change without going back to 0"):
        read(stim_raw(tmp_path / "d", STI101=held), tmp_path, BY_EVENT)


def test_several_files_need_to_be_told_apart_and_alike(tmp_path):
    one, two = (write_raw(tmp_path, name=f"sub-0{n}", seed=n) for n in (1, 2))
    table = write_table(tmp_path / "t.csv", by_presentation(one, "image", "sample"))
    paths = [one.recording, two.recording]
    with pytest.raises(InputError, match="several recordings; add a column file"):
        mne_epochs.read(paths, one.images, table, preparation=WINDOW)
    rows = [
        {**row, "file": lab.recording.name} for lab in (one, two) for row in by_presentation(lab, "image", "sample")
    ]
    recording = mne_epochs.read(paths, one.images, write_table(table, rows), preparation=WINDOW)
    assert_all_there(segments_of(recording)[:12], one)
    assert_all_there(segments_of(recording)[12:], two)
    assert [part.name for part in recording.parts] == [
        "sub-01_raw.fif from sub-01_ses-00_tr-00000", "sub-02_raw.fif from sub-02_ses-00_tr-00000",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"line 14: file 'sub-02_raw.fif' is not among the recordings"):
        mne_epochs.read(paths[:1], one.images, table, preparation=WINDOW)
    with pytest.raises(InputError, match="given twice"):
        mne_epochs.read([paths[0], paths[0]], one.images, table, preparation=WINDOW)
    raw = mne.io.read_raw_fif(two.recording, preload=True, verbose="error")
    raw.drop_channels(["O2"]).save(two.recording, overwrite=True, verbose="error")
    with pytest.raises(InputError, match=r"sub-02_raw.fif differs from .*sub-01_raw.fif: channels without O2; choose"):
        mne_epochs.read(paths, one.images, table, preparation=WINDOW)


def test_subjects_come_from_names_or_the_table_or_are_asked_for(tmp_path):
    first, second = write_raw(tmp_path, name="anna", seed=1), write_raw(tmp_path, name="ben", seed=2)
    recording = read(first, tmp_path, BY_EVENT)
    assert {segment.subject for segment in segments_of(recording)} == {"sub-anna_raw"}
    assert any("does not say whose it is" in fact for fact in recording.header.facts)
    paths = [first.recording, second.recording]
    table = write_table(tmp_path / "t.csv", BY_EVENT)
    with pytest.raises(InputError, match=r"anna_raw.fif does not say whose it is; name it like sub-01_anna_raw.fif"):
        mne_epochs.read(paths, first.images, table, preparation=WINDOW)
    rows = [
        {**row, "file": lab.recording.name, "subject": subject, "session": "late", "block": 3}
        for lab, subject in ((first, "7"), (second, "sub-8"))
        for row in by_presentation(lab, "image", "onset_s")
    ]
    recording = mne_epochs.read(paths, first.images, write_table(table, rows), preparation=WINDOW)
    segments = segments_of(recording)
    assert {(s.subject, s.session, s.block) for s in segments} == {("sub-7", 1, 3), ("sub-8", 1, 3)}
    assert "sessions were numbered: ses-late is 1" in recording.header.facts


def test_scales_need_training_pictures_and_are_shared_by_a_session(bids, tmp_path):
    folder, _ = bids
    zscore = Preparation(window_s=(0.0, 0.4), scale="zscore")
    with pytest.raises(InputError, match=r"fitted on training segments.*column split"):
        mne_epochs.read([folder], folder / "images", preparation=zscore)
    rows = [{**row, "split": "test" if row["event"] == 23 else "train"} for row in BY_EVENT]
    table = write_table(tmp_path / "t.csv", [*rows, {"event": "answer", "image": "", "split": ""}])
    recording = mne_epochs.read([folder], folder / "images", table, preparation=zscore)
    assert recording.header.unit == "zscore"
    assert len(recording.parts) == 2
    train = np.stack([s.eeg_CT for s in recording.parts[0].read(Counter()) if s.image_id != IMAGES[5]])
    assert len(train) == 20
    np.testing.assert_allclose(train.mean(axis=(0, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(train.std(axis=(0, 2)), 1, atol=1e-2)


def test_parts_can_go_elsewhere_and_change_their_key_with_what_they_depend_on(raw, tmp_path):
    recording = read(raw, tmp_path, BY_EVENT)
    again = pickle.loads(pickle.dumps(recording.parts[0]))
    assert [digest(s.eeg_CT) for s in again.read(Counter())] == [digest(s.eeg_CT) for s in segments_of(recording)]
    assert read(raw, tmp_path, BY_EVENT).parts[0].key == recording.parts[0].key
    other = read(raw, tmp_path, BY_EVENT, preparation=Preparation(window_s=(0.0, 0.3)))
    swapped = read(raw, tmp_path, put(put(BY_EVENT, 0, image=IMAGES[1]), 1, image=IMAGES[0]))
    assert len({recording.parts[0].key, other.parts[0].key, swapped.parts[0].key}) == 3


def test_positions_are_the_files_own_or_else_standard(raw, tmp_path):
    standard = read(raw, tmp_path, BY_EVENT).header.montage.positions_m
    assert standard[2][1] < -0.05  # O1 is at the back
    lab = write_raw(tmp_path / "own")
    own = {name: (0.01 * number, 0.0, 0.09) for number, name in enumerate(CHANNELS)}
    file = mne.io.read_raw_fif(lab.recording, preload=True, verbose="error")
    file.set_montage(mne.channels.make_dig_montage(own, coord_frame="head"))
    file.save(lab.recording, fmt="double", overwrite=True, verbose="error")
    picked = Preparation(window_s=(0.0, 0.4), channels=("O1", "Fp1"))
    montage = read(lab, tmp_path, BY_EVENT, preparation=picked).header.montage
    assert montage.channels == ("O1", "Fp1")
    np.testing.assert_allclose(montage.positions_m, [own["O1"], own["Fp1"]], atol=1e-6)


def test_sensors_of_two_units_are_not_mixed(tmp_path):
    lab = write_raw(tmp_path)
    raw = mne.io.RawArray(
        lab.eeg_CS * 1e-7, mne.create_info(["M1", "M2", "G1", "E1"], 250.0, ["mag", "mag", "grad", "eeg"])
    )
    raw.set_annotations(mne.io.read_raw_fif(lab.recording, verbose="error").annotations)
    raw.save(lab.recording, fmt="double", overwrite=True, verbose="error")
    with pytest.raises(InputError, match=r"1 planar gradiometers \(T/m\) besides 2 magnetometers.*picks=mag"):
        read(lab, tmp_path, BY_EVENT, picks="meg")
    header = read(lab, tmp_path, BY_EVENT, picks="mag").header
    assert (header.unit, header.montage.channels) == ("T", ("M1", "M2"))


def test_sources_that_are_none_are_refused(raw, tmp_path):
    table = write_table(tmp_path / "t.csv", BY_EVENT)
    (tmp_path / "x.vmrk").touch()
    (tmp_path / "x.mp3").write_bytes(b"no")
    for path, message in (
        (tmp_path / "none.fif", "there is no recording"),
        (tmp_path / "x.vmrk", "give the .vhdr"),
        (tmp_path / "x.mp3", "cannot be read"),
        (tmp_path, "is a folder; give one BIDS folder"),
    ):
        with pytest.raises(InputError, match=message):
            mne_epochs.read([path], raw.images, table, preparation=WINDOW)
    with pytest.raises(InputError, match="no recording was given"):
        mne_epochs.read([], raw.images, table, preparation=WINDOW)
    with pytest.raises(InputError, match="needs a window around its events"):
        read(raw, tmp_path, BY_EVENT, preparation=Preparation())


def test_a_header_may_not_name_files_elsewhere(tmp_path):
    lab = write_raw(tmp_path / "in", "brainvision")
    shutil.copy(lab.recording.with_suffix(".eeg"), tmp_path / "secret.eeg")
    text = lab.recording.read_text().replace(f"DataFile={lab.recording.stem}.eeg", "DataFile=../secret.eeg")
    lab.recording.write_text(text)
    with pytest.raises(InputError, match=r"names the file '../secret.eeg', which is not beside it"):
        read(lab, tmp_path, BY_EVENT)


def test_subject_of_table_and_of_name_must_agree(raw, tmp_path):
    rows = [{**row, "file": raw.recording.name, "subject": "02"} for row in BY_EVENT]
    with pytest.raises(InputError, match=r"line 2: subject is 'sub-02', but .*_raw.fif is of 'sub-01' by its name"):
        read(raw, tmp_path, rows)
