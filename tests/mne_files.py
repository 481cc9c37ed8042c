"""A lab's recordings in every format, and THINGS-MEG's files: small, with known samples, in steps of 0.1 uV or 1 fT."""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import edfio
import mne
import numpy as np
import pybv

from generators import picture

Format = Literal["fif", "edf", "brainvision", "eeglab"]

CHANNELS = ("Fp1", "Cz", "O1", "O2")
SFREQ_HZ = 250.0
N_SAMPLES = 3500
STEP_V = 1e-7
# No name becomes another when one bit of it flips.
IMAGES: tuple[str, ...] = ("cat/aa.jpg", "cat/bb.jpg", "cat/cc.jpg", "dog/dd.jpg", "dog/ee.jpg", "dog/ff.jpg")
CODES = (11, 12, 13, 21, 22, 23)
BY_EVENT: list[dict[str, Any]] = [{"event": code, "image": image} for code, image in zip(CODES, IMAGES, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Lab:
    """One recording: samples in volts [C, S], and which image (its index) was shown at which sample."""

    recording: Path
    images: Path
    eeg_CS: np.ndarray
    sample_N: tuple[int, ...]
    image_N: tuple[int, ...]

    def window(self, number: int, from_sample: int = 0, to_sample: int = 100) -> np.ndarray:
        """Samples [C, T] around presentation `number`."""
        return self.eeg_CS[:, self.sample_N[number] + from_sample : self.sample_N[number] + to_sample]


def digest(eeg_CT: np.ndarray, step: float = STEP_V) -> str:
    """Hash of samples in whole steps, the same before and after they were float32."""
    return hashlib.sha256(np.round(np.asarray(eeg_CT, np.float64) / step).astype("<i8").tobytes()).hexdigest()


def write_images(folder: Path) -> Path:
    for number, name in enumerate(IMAGES):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number // 3, seed=number))
    return folder / "images"


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """CSV or TSV; columns are the keys of the first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_presentation(lab: Lab, *columns: str) -> list[dict[str, Any]]:
    """A row for every presentation, with these columns."""
    values: list[dict[str, Any]] = [
        {
            "image": IMAGES[image],
            "event": CODES[image],
            "sample": sample,
            "onset_s": sample / SFREQ_HZ,
            "epoch": number,
            "label": IMAGES[image][0],
            "split": "test" if image == 5 else "train",
        }
        for number, (sample, image) in enumerate(zip(lab.sample_N, lab.image_N, strict=True))
    ]
    return [{column: row[column] for column in columns} for row in values]


def design(seed: int = 0) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """14 s of noise of 10 uV on four channels; 12 presentations about one second apart, every image twice."""
    rng = np.random.default_rng(seed)
    eeg_CS = np.round(rng.normal(0, 100, (len(CHANNELS), N_SAMPLES))) * STEP_V
    sample_N = tuple(int(at) for at in 250 * np.arange(1, 13) + rng.integers(0, 60, 12))
    image_N = tuple(int(image) for image in rng.permutation(np.repeat(np.arange(6), 2)))
    return eeg_CS, sample_N, image_N


def as_raw(eeg_CS: np.ndarray, kind: str = "eeg", channels: Sequence[str] = CHANNELS) -> mne.io.RawArray:
    info = mne.create_info(list(channels), SFREQ_HZ, kind)
    return mne.io.RawArray(eeg_CS, info, verbose="error")


def write_raw(
    folder: Path,
    kind: Format = "fif",
    *,
    name: str = "sub-01_ses-02_eeg",
    seed: int = 0,
    annotations: Sequence[tuple[float, float, str]] = (),
    codes: Sequence[int | str] = CODES,
) -> Lab:
    """A recording whose event with code CODES[i] (BrainVision: `Stimulus/S 11`) shows IMAGES[i].

    `annotations` are further ones: onset and duration in seconds, text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    eeg_CS, sample_N, image_N = design(seed)
    written = [(sample / SFREQ_HZ, 0.0, str(codes[image])) for sample, image in zip(sample_N, image_N, strict=True)]
    written = sorted([*written, *annotations])
    raw = as_raw(eeg_CS)
    raw.set_annotations(mne.Annotations(*zip(*written, strict=True)), verbose="error")
    if kind == "fif":
        path = folder / f"{name}_raw.fif"
        raw.save(path, fmt="double", verbose="error", overwrite=True)
    elif kind == "eeglab":
        path = folder / f"{name}.set"
        mne.export.export_raw(path, raw, verbose="error", overwrite=True)
    elif kind == "edf":
        path = folder / f"{name}.edf"
        signals = [
            edfio.EdfSignal(
                row * 1e6, SFREQ_HZ, label=channel, physical_dimension="uV", physical_range=(-3276.8, 3276.7)
            )
            for channel, row in zip(CHANNELS, eeg_CS, strict=True)
        ]
        edfio.Edf(signals, annotations=[edfio.EdfAnnotation(at, None, text) for at, _, text in written]).write(path)
    else:
        path = folder / f"{name}.vhdr"
        _write_brainvision(path, eeg_CS, sample_N, [int(codes[image]) for image in image_N])
    return Lab(recording=path, images=write_images(folder), eeg_CS=eeg_CS, sample_N=sample_N, image_N=image_N)


def _write_brainvision(path: Path, eeg_CS: np.ndarray, sample_N: Sequence[int], codes: Sequence[int]) -> None:
    pybv.write_brainvision(
        data=eeg_CS + np.sign(eeg_CS) * 0.2 * STEP_V,  # it cuts where it should round
        sfreq=SFREQ_HZ,
        ch_names=list(CHANNELS),
        fname_base=path.stem,
        folder_out=path.parent,
        events=np.column_stack([sample_N, codes]),
        resolution=0.1,
        unit="µV",
        fmt="binary_int16",
        overwrite=True,
    )


def write_epochs(
    folder: Path,
    kind: Literal["fif", "eeglab"] = "fif",
    *,
    name: str = "sub-01",
    seed: int = 0,
    metadata: Mapping[str, Sequence[Any]] | None = None,
    annotations: Sequence[tuple[float, float, str]] = (),
) -> Lab:
    """The epochs of `write_raw`, -0.1 to 0.4 s, event names `picture/11` and so on."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    eeg_CS, sample_N, image_N = design(seed)
    raw = as_raw(eeg_CS)
    if annotations:
        raw.set_annotations(mne.Annotations(*zip(*annotations, strict=True)), verbose="error")
    events = np.array([[at, 0, CODES[image]] for at, image in zip(sample_N, image_N, strict=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # edfio and eeglabio warn of what does not matter here
        epochs = mne.Epochs(
            raw,
            events,
            {f"picture/{code}": code for code in CODES},
            tmin=-0.1,
            tmax=0.4,
            baseline=None,
            preload=True,
            reject_by_annotation=False,
            metadata=None if metadata is None else pd.DataFrame(metadata),
            verbose="error",
        )
        path = folder / (f"{name}-epo.fif" if kind == "fif" else f"{name}.set")
        if kind == "fif":
            epochs.save(path, fmt="double", overwrite=True, verbose="error")
        else:
            mne.export.export_epochs(path, epochs, overwrite=True, verbose="error")
    return Lab(recording=path, images=write_images(folder), eeg_CS=eeg_CS, sample_N=sample_N, image_N=image_N)


def write_bids(folder: Path, *, subjects: int = 2, runs: int = 2) -> dict[str, Lab]:
    """BrainVision recordings of one session in BIDS, pictures named in `stim_file`; by name of the recording."""
    labs = {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "lab", "BIDSVersion": "1.10.0"}))
    names = [f"sub-{number:02d}" for number in range(1, subjects + 1)]
    write_table(folder / "participants.tsv", [{"participant_id": name} for name in names])
    images = write_images(folder)
    for seed, (subject, run) in enumerate((subject, run) for subject in names for run in range(1, runs + 1)):
        at = folder / subject / "ses-01" / "eeg"
        at.mkdir(parents=True, exist_ok=True)
        eeg_CS, sample_N, image_N = design(seed)
        stem = f"{subject}_ses-01_task-look_run-{run}"
        path = at / f"{stem}_eeg.vhdr"
        _write_brainvision(path, eeg_CS, sample_N, [1] * len(sample_N))
        sidecar = {"TaskName": "look", "SamplingFrequency": SFREQ_HZ, "PowerLineFrequency": 50, "EEGReference": "n/a"}
        (at / f"{stem}_eeg.json").write_text(json.dumps(sidecar))
        write_table(
            at / f"{stem}_channels.tsv",
            [{"name": name, "type": "EEG", "units": "µV", "status": "bad" if name == "O2" else "good"}
             for name in CHANNELS],
        )  # fmt: skip
        rows: list[dict[str, Any]] = [
            {"onset": sample / SFREQ_HZ, "duration": 0.1, "sample": sample, "trial_type": f"look/{CODES[image]}",
             "stim_file": IMAGES[image]}
            for sample, image in zip(sample_N, image_N, strict=True)
        ]  # fmt: skip
        answer = {"onset": 13.5, "duration": 0, "sample": 3375, "trial_type": "answer", "stim_file": "n/a"}
        write_table(at / f"{stem}_events.tsv", [*rows, answer])
        labs[path.name] = Lab(recording=path, images=images, eeg_CS=eeg_CS, sample_N=sample_N, image_N=image_N)
    return labs


@dataclass(frozen=True, kw_only=True)
class ThingsMeg:
    """Where `write_things_meg` put things; `meg_NCT` in tesla and `row_N` (1-based, 999999 catch) by participant."""

    source: Path
    images: Path
    metadata: Path
    paths: tuple[str, ...]
    meg_NCT: dict[int, np.ndarray]
    row_N: dict[int, tuple[int, ...]]


def write_things_meg(
    folder: Path,
    *,
    participants: int = 1,
    concepts: int = 5,
    per_concept: int = 3,
    test_concepts: int = 2,
    test_repeats: int = 12,
    n_chans: int = 4,
    catch: int = 3,
    missing: Sequence[int] = (),
    extra: Sequence[int] = (),
    baseline_z: bool = False,
    seed: int = 0,
) -> ThingsMeg:
    """THINGS-MEG's layout: every concept has `per_concept` pictures shown once and, in the pool, one more at the end.

    For the first `test_concepts` concepts that one is shown `test_repeats` times. `missing` rows are never shown,
    `extra` ones once more. Epochs of -0.1 to 1.3 s at 200 Hz, in random order.
    """
    rng = np.random.default_rng(seed)
    n_images = per_concept + 1
    paths = [f"images/thing{concept}/{image:02d}s.jpg" for concept in range(concepts) for image in range(n_images)]
    for number, name in enumerate(paths):
        path = folder / "things" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number // n_images, seed=number))
    for subfolder, name, lines in (
        ("Image-specific", "image_paths.csv", paths),
        ("Concept-specific", "image_concept_index.csv", [str(1 + row // n_images) for row in range(len(paths))]),
    ):
        path = folder / "Metadata" / subfolder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    meg_NCT, row_N = {}, {}
    step = 1e-15
    for participant in range(1, participants + 1):
        once = [row + 1 for row in range(len(paths)) if row % n_images < per_concept]
        tested = [n_images * concept + n_images for concept in range(test_concepts)] * test_repeats
        shown = [row for row in [*once, *tested, *extra] if row not in missing] + [999999] * catch
        row_N[participant] = tuple(int(row) for row in rng.permutation(shown))
        values = np.round(rng.normal(0, 200, (len(shown), n_chans, 281)))
        meg_NCT[participant] = values * (5e-3 if baseline_z else step)
        info = mne.create_info([f"MLC{10 + channel}-1609" for channel in range(n_chans)], 200.0, "mag")
        events = np.column_stack([np.arange(len(shown)), np.zeros(len(shown), int), row_N[participant]])
        epochs = mne.EpochsArray(
            meg_NCT[participant], info, events, -0.1, {str(code): code for code in set(shown)}, verbose="error"
        )
        (folder / "meg").mkdir(exist_ok=True)
        epochs.save(folder / "meg" / f"preprocessed_P{participant}-epo.fif", fmt="double", verbose="error")
    return ThingsMeg(
        source=folder / "meg",
        images=folder / "things",
        metadata=folder / "Metadata",
        paths=tuple(paths),
        meg_NCT=meg_NCT,
        row_N=row_N,
    )
