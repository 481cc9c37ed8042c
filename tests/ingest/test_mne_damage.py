"""eegvision.ingest.mne_epochs and events on damaged files: refused, dropped by name, or only samples differ."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eegvision.ingest import events, mne_epochs, sources, things_meg
from eegvision.ingest.prepare import Preparation
from eegvision.vocab import InputError, Segment
from mne_files import (
    BY_EVENT,
    CHANNELS,
    IMAGES,
    by_presentation,
    write_epochs,
    write_raw,
    write_table,
    write_things_meg,
)


def mutate(path: Path, rng: np.random.Generator, spared: tuple[int, int] = (0, 0)) -> None:
    """Flip a bit of a file outside the spared bytes, or (one in eight) cut it short."""
    content = bytearray(path.read_bytes())
    at = int(rng.integers(len(content) - (spared[1] - spared[0])))
    at += (spared[1] - spared[0]) * (at >= spared[0])
    if rng.integers(8) == 0:
        path.write_bytes(content[:at])
        return
    content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def facts_of(recording: sources.Recording, segments: Sequence[Segment]) -> tuple[Any, ...]:
    """All but samples and order."""
    header = recording.header
    names = ("segment_id", "subject", "session", "block", "image_id", "repetition")
    shown = [[getattr(segment, name) for name in names] for segment in segments]
    onsets = np.nan_to_num([segment.onset_s for segment in segments], nan=-1).tolist()
    return header.montage, header.sfreq_hz, header.t_min_s, header.n_times, header.unit, shown, onsets


def refusal(error: InputError, *names: str) -> str:
    """The message, which has to name one of the files."""
    assert any(name in str(error) for name in names), error
    return "refused"


@pytest.mark.parametrize("kind", ["fif", "brainvision"])
def test_damage_to_a_recording_is_refused_dropped_by_name_or_changes_only_samples(tmp_path, kind):
    lab = write_epochs(tmp_path) if kind == "fif" else write_raw(tmp_path, "brainvision")
    columns = ("image", "epoch", "event") if kind == "fif" else ("image", "sample", "onset_s", "event")
    table = write_table(tmp_path / "t.csv", by_presentation(lab, *columns))
    preparation = Preparation(window_s=(0.0, 0.396), channels=CHANNELS)

    def tried() -> tuple[sources.Recording, list[Segment]]:
        recording = mne_epochs.read([lab.recording], lab.images, table, preparation=preparation, on_bad="drop")
        return recording, [segment for part in recording.parts for segment in part.read(recording.dropped)]

    truth = facts_of(*tried())
    spared = (0, 0)
    if kind == "fif":  # samples are 97 % of the file, where damage shows in no other way
        start = lab.recording.read_bytes().index(lab.window(0, -25, 101).astype(">f8").tobytes())
        spared = (start, start + 12 * lab.window(0, -25, 101).nbytes)
    suffixes = (".fif",) if kind == "fif" else (".vhdr", ".vmrk", ".eeg")
    rng = np.random.default_rng(1)
    outcomes: Counter[str] = Counter()
    for number in range(200):
        path = lab.recording.with_suffix(suffixes[number % len(suffixes)])
        original = path.read_bytes()
        mutate(path, rng, spared if number % 4 else (0, 0))
        try:
            found, segments = tried()
            outcomes["dropped" if +found.dropped else "read"] += 1
            # Damaged times of epochs leave their order unknown.
            orders = [segment.order for segment in segments]
            assert +found.dropped or orders in (list(range(12)), [-1] * 12)
            assert +found.dropped or facts_of(found, segments) == truth
        except InputError as error:
            outcomes[refusal(error, lab.recording.stem)] += 1
        path.write_bytes(original)
    assert min(outcomes["refused"], outcomes["read"]) > 10


def test_damage_to_things_meg_is_refused_dropped_by_name_or_changes_only_samples(tmp_path):
    things = write_things_meg(tmp_path)
    recording = next(things.source.rglob("*-epo.fif"))
    tables = [next(things.metadata.rglob(name)) for name in ("image_paths.csv", "image_concept_index.csv")]
    samples = things.meg_NCT[1].astype(">f8").tobytes()
    start = recording.read_bytes().index(samples[:1000])

    def tried() -> tuple[Counter[str], dict[str, tuple[str, str, str]]]:
        """Drops, and the picture, class and side of every segment."""
        found = things_meg.read(things.source, things.images, things.metadata, on_bad="drop")
        segments = [segment for part in found.parts for segment in part.read(found.dropped)]
        class_of = {stimulus.image_id: stimulus.label_name for stimulus in found.stimuli}
        side_of = {image: side for side, images in found.header.published.items() for image in images}
        return +found.dropped, {
            segment.segment_id: (segment.image_id, class_of[segment.image_id], side_of.get(segment.image_id, ""))
            for segment in segments
        }

    known_drops, truth = tried()
    rng = np.random.default_rng(3)
    outcomes: Counter[str] = Counter()
    for number in range(200):
        path = [recording, recording, *tables][number % 4]
        original = path.read_bytes()
        mutate(path, rng, (start, start + len(samples)) if path == recording and number % 8 else (0, 0))
        try:
            dropped, found = tried()
            outcomes["dropped" if dropped != known_drops else "equal"] += 1
            assert found == truth or (dropped != known_drops and found.items() <= truth.items())
        except InputError as error:
            outcomes[refusal(error, recording.name, *(table.name for table in tables), "things")] += 1
        path.write_bytes(original)
    assert min(outcomes["refused"], outcomes["equal"]) > 10


def test_damage_to_a_table_is_refused_or_dropped_by_name(tmp_path):
    lab = write_raw(tmp_path)
    table = write_table(tmp_path / "t.csv", by_presentation(lab, "image", "sample", "onset_s", "event"))
    good = table.read_bytes()
    _, said = mne_epochs.look(lab.recording)

    def pairs() -> tuple[list[tuple[int, str]], Counter[str]]:
        found = events.pair(said, events.read_table(table), lab.images, on_bad="drop", is_only=True)
        pictures = events.find_pictures(found.shown, lab.images, has_labels=False)
        assert {events.image_id_of(one.image) for one in found.shown} == set(pictures)
        return [(one.sample, events.image_id_of(one.image)) for one in found.shown], found.dropped

    truth, _ = pairs()
    rng = np.random.default_rng(2)
    outcomes: Counter[str] = Counter()
    for number in range(200):
        table.write_bytes(good)
        if number % 4:
            mutate(table, rng)
        else:  # two rows swap what they say in one column
            lines = [line.split(",") for line in good.decode().splitlines()]
            (one, two), column = rng.choice(np.arange(1, 13), 2, replace=False), 1 + int(rng.integers(3))
            lines[one][column], lines[two][column] = lines[two][column], lines[one][column]
            table.write_text("\n".join(map(",".join, lines)) + "\n")
        try:
            found, dropped = pairs()
            outcomes["dropped" if dropped else "equal"] += 1
            # A sample may be one off: tables count from 0 or from 1.
            near = {(sample + step, name) for sample, name in truth for step in (-1, 0, 1)}
            assert set(found) <= near
            assert dropped or len(found) == len(truth)
        except InputError as error:
            outcomes[refusal(error, str(table))] += 1
    assert outcomes["refused"] > 100


@pytest.mark.parametrize("place", ["samples", "table"])
def test_checksums_find_what_nothing_else_can(tmp_path, place):
    lab = write_raw(tmp_path, "brainvision")
    table = write_table(tmp_path / "t.csv", BY_EVENT)
    window = Preparation(window_s=(0.0, 0.4))
    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (tmp_path / "SHA256SUMS").write_text(sums)
    recording = mne_epochs.read([lab.recording], lab.images, table, preparation=window)
    assert not any("checksum" in fact for fact in recording.header.facts)
    if place == "samples":
        path = lab.recording.with_suffix(".eeg")
        content = bytearray(path.read_bytes())
        content[8 * lab.sample_N[2]] ^= 1
        path.write_bytes(content)
    else:
        write_table(table, [{**row, "image": IMAGES[number - 1]} for number, row in enumerate(BY_EVENT)])
    with pytest.raises(InputError, match=r"is damaged or another version: its sha256 is"):
        mne_epochs.read([lab.recording], lab.images, table, preparation=window)
