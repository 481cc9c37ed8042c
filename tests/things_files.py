"""THINGS-EEG2 as its publishers and users release it, in five layouts, tiny; with the hash of every segment."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from generators import picture

# The 17 posterior channels of the 63, and before them a frontal one of every kind.
CHANNELS = (
    "Fp1",
    "P7",
    "P5",
    "P3",
    "P1",
    "Pz",
    "P2",
    "P4",
    "P6",
    "P8",
    "PO7",
    "PO3",
    "POz",
    "PO4",
    "PO8",
    "O1",
    "Oz",
    "O2",
)
TRAINING = ("aardvark", "abacus", "accordion", "acorn", "air_conditioner", "alligator")
TEST = ("aircraft_carrier", "antelope", "backscratcher")
PER_CONCEPT = 2
SOA = 200  # samples

Layout = Literal["preprocessed", "preprocessed-nice", "whitened", "reshaped"]


@dataclass(frozen=True, kw_only=True)
class ThingsFiles:
    """Where things were put; `sha256` and `image_of` are keyed by segment id."""

    source: Path
    images: Path
    metadata: Path
    sha256: dict[str, str] = field(default_factory=dict)
    image_of: dict[str, str] = field(default_factory=dict)


def sha256(eeg_CT: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(eeg_CT, dtype="<f4").tobytes()).hexdigest()


def names_of(partition: str) -> list[str]:
    """Image ids in the order of the conditions, without the partition."""
    concepts, count = (TRAINING, PER_CONCEPT) if partition == "training" else (TEST, 1)
    return [f"{n:05d}_{name}/{name}_{k:02d}b" for n, name in enumerate(concepts, 1) for k in range(1, count + 1)]


def write_images(folder: Path) -> tuple[Path, Path]:
    """Write `image_set` and `image_metadata.npy`."""
    images, metadata = folder / "image_set", folder / "image_metadata.npy"
    listed: dict[str, list[str]] = {}
    for key, partition in (("train", "training"), ("test", "test")):
        for number, name in enumerate(names_of(partition)):
            path = images / f"{partition}_images" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number, seed=len(partition)))
        split = [name.split("/") for name in names_of(partition)]
        listed[f"{key}_img_concepts"] = [concept for concept, _ in split]
        listed[f"{key}_img_concepts_THINGS"] = [concept for concept, _ in split]
        listed[f"{key}_img_files"] = [f"{file}.jpg" for _, file in split]
    np.save(metadata, listed)  # type: ignore[arg-type]
    return images, metadata


def n_conditions(partition: str) -> int:
    return len(names_of(partition))


def write_epoched(
    folder: Path,
    layout: Layout,
    *,
    subjects: int = 1,
    reps: tuple[int, int] = (4, 8),
    n_times: int = 25,
    channels: tuple[str, ...] = CHANNELS,
    dtype: str = "float64",
    seed: int = 0,
) -> ThingsFiles:
    """Write files of white noise in one of the layouts that hold segments already."""
    images, metadata = write_images(folder)
    rng = np.random.default_rng(seed)
    files = ThingsFiles(source=folder / "eeg", images=images, metadata=metadata)
    for number in range(1, subjects + 1):
        subject = f"sub-{number:02d}"
        for partition, n_reps in zip(("training", "test"), reps, strict=True):
            shape = (n_conditions(partition), n_reps, len(channels), n_times)
            eeg = rng.standard_normal(shape).astype(dtype)
            if layout == "whitened":
                eeg = eeg.astype(np.float16)
            write_layout(files.source, layout, subject, partition, eeg, channels)
            note(files, subject, partition, eeg)
    return files


def note(files: ThingsFiles, subject: str, partition: str, eeg: np.ndarray) -> None:
    """Remember what every segment is."""
    for row, name in enumerate(names_of(partition)):
        for rep in range(eeg.shape[1]):
            segment = f"{subject}_{partition[:2]}-{row + 1:05d}-{rep:02d}"
            files.sha256[segment] = sha256(eeg[row, rep])
            files.image_of[segment] = f"{partition}/{name}"


def write_layout(
    source: Path, layout: Layout, subject: str, partition: str, eeg: np.ndarray, channels: tuple[str, ...]
) -> Path:
    """Write [conditions, repetitions, channels, samples] as a layout has it; return the file."""
    folder = source / subject
    folder.mkdir(parents=True, exist_ok=True)
    n_images, n_reps, _, n_times = eeg.shape
    if layout == "preprocessed":
        times = -0.2 + np.arange(n_times) / 100
        path = folder / f"preprocessed_eeg_{partition}.npy"
        np.save(path, {"preprocessed_eeg_data": eeg, "ch_names": [*channels], "times": times})  # type: ignore[arg-type]
        return path
    times = -0.2 + np.arange(n_times + 50) / 250  # the 50 samples before onset are cut off, not their times
    content: dict[str, Any]
    if layout == "preprocessed-nice":
        path = folder / f"preprocessed_eeg_{partition}.npy"
        content = {"preprocessed_eeg_data": eeg, "ch_names": [*channels], "times": times}
        path.write_bytes(pickle.dumps(content, protocol=4))
        return path
    short = "train" if partition == "training" else "test"
    names = names_of(partition)
    concepts = sorted({name.split("/")[0] for name in names})
    if layout == "whitened":
        path = folder / f"{short}.pt"
        labels = np.array([concepts.index(name.split("/")[0]) for name in names])
        columns = {
            "label": labels,
            "img": np.array([f"{short}_images/{name}.jpg" for name in names]),
            "text": np.array([name.split("/")[1].rsplit("_", 1)[0] for name in names]),
        }
        content = {key: np.tile(column[:, None], (1, n_reps)) for key, column in columns.items()}
        content["session"] = np.tile(np.arange(n_reps) // 2 % 4, (n_images, 1)).astype(float)
        torch.save({"eeg": eeg, **content, "ch_names": [*channels], "times": times}, path, pickle_protocol=5)
        return path
    path = folder / f"{short}.npy"
    np.save(path, eeg.reshape(len(concepts), -1, *eeg.shape[1:]))
    info = {
        "ch_names": [*channels], "times": times.tolist(), "baseline_duration": 0.2, "after_duration": n_times / 250,
        "normalization": "mvnn", "sfreq": 250.0, "precision": {2: "fp16", 4: "fp32", 8: "fp64"}[eeg.dtype.itemsize],
        "seed": 20200220, f"{short}_data_shape": eeg[: n_images // 2, :2].shape,
    }  # fmt: skip
    said = json.loads((source / "info.json").read_text()) if (source / "info.json").exists() else {}
    (source / "info.json").write_text(json.dumps(said | info, indent=4))
    return path


@dataclass(frozen=True, kw_only=True)
class Run:
    """One raw recording: [channels, samples] in volts, and [events, 2] of sample and code."""

    path: Path
    eeg_CS: np.ndarray
    event_M2: np.ndarray


def write_raw(
    folder: Path,
    *,
    subjects: int = 1,
    sessions: int = 2,
    reps: tuple[int, int] = (2, 4),
    channels: tuple[str, ...] = CHANNELS[-5:],
    window: tuple[int, int] = (0, 100),
    margin: int = 1100,
    seed: int = 0,
) -> tuple[ThingsFiles, dict[tuple[str, int, str], Run]]:
    """Write raw recordings: all pictures `reps` times in every session in random order, 200 ms apart, and two targets.

    The hashes are those of samples `window` around the event, as the recording has them.
    """
    images, metadata = write_images(folder)
    rng = np.random.default_rng(seed)
    files, runs = ThingsFiles(source=folder / "raw_data", images=images, metadata=metadata), {}
    for subject in (f"sub-{number:02d}" for number in range(1, subjects + 1)):
        for session in range(1, sessions + 1):
            for partition, n_reps in zip(("training", "test"), reps, strict=True):
                codes = rng.permutation([*np.tile(np.arange(1, n_conditions(partition) + 1), n_reps), 99999, 99999])
                sample_M = margin + SOA * np.arange(len(codes))
                run = Run(
                    path=files.source / subject / f"ses-{session:02d}" / f"raw_eeg_{partition}.npy",
                    eeg_CS=_recording(rng, len(channels), sample_M[-1] + margin + 400),
                    event_M2=np.stack([sample_M, codes], axis=1),
                )
                save_raw(run, channels)
                runs[subject, session, partition] = run
                for order, (sample, code) in enumerate(run.event_M2.tolist()):
                    if code != 99999:
                        segment = f"{subject}_ses-{session:02d}_{partition[:2]}-{order:05d}"
                        files.sha256[segment] = sha256(run.eeg_CS[:, sample + window[0] : sample + window[1]])
                        files.image_of[segment] = f"{partition}/{names_of(partition)[code - 1]}"
    return files, runs


def save_raw(run: Run, channels: tuple[str, ...], **changes: Any) -> None:
    stim_S = np.zeros(run.eeg_CS.shape[1])
    stim_S[run.event_M2[:, 0]] = run.event_M2[:, 1]
    run.path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "raw_eeg_data": np.vstack([run.eeg_CS, stim_S]), "ch_names": [*channels, "stim"],
        "ch_types": ["eeg"] * len(channels) + ["stim"], "sfreq": 1000, "highpass": 0.01, "lowpass": 100.0,
    }  # fmt: skip
    np.save(run.path, content | changes)  # type: ignore[arg-type]


def _recording(rng: np.random.Generator, n_chans: int, n_samples: int) -> np.ndarray:
    """Correlated noise below 100 Hz of some 10 microvolts, in volts."""
    noise_CS = rng.standard_normal((n_chans, n_samples))
    spectrum_CF = np.fft.rfft(noise_CS)
    frequency_F = np.fft.rfftfreq(n_samples, 1 / 1000)
    spectrum_CF *= (1 / np.maximum(frequency_F, 1) ** 0.5) * (frequency_F < 100)
    mixing_CC = np.eye(n_chans) + 0.3 * rng.standard_normal((n_chans, n_chans))
    smooth_CS = mixing_CC @ np.fft.irfft(spectrum_CF, n_samples)
    return 1e-5 * smooth_CS / smooth_CS.std()


def as_nice(runs: dict[tuple[str, int, str], Run], subject: str, channels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Preprocess raw recordings by NICE's published steps: [conditions, repetitions, channels, samples] per partition.

    Epochs of -0.2 to 1.0 s, minus the mean before onset, resampled to 250 Hz, the last 250 samples; whitened with the
    covariance of the session's training epochs. Repetitions stay in the order of sessions and presentations: the
    published random choice among surplus ones has nothing to choose from here.
    """
    import mne
    import scipy.linalg
    from sklearn.covariance import LedoitWolf

    info = mne.create_info([*channels], 1000.0, "eeg", verbose="error")
    merged: dict[str, list[np.ndarray]] = {"training": [], "test": []}
    for session in sorted({key[1] for key in runs if key[0] == subject}):
        sorted_of: dict[str, np.ndarray] = {}
        for partition in ("training", "test"):
            run = runs[subject, session, partition]
            event_M2 = run.event_M2[run.event_M2[:, 1] != 99999]
            events = np.insert(event_M2, 1, 0, axis=1)
            recording = mne.io.RawArray(run.eeg_CS, info, verbose="error")
            epochs = mne.Epochs(
                recording, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, verbose="error"
            )
            data = epochs.resample(250, verbose="error").get_data(copy=True)[:, :, -250:]
            sorted_of[partition] = np.stack([data[event_M2[:, 1] == code] for code in np.unique(event_M2[:, 1])])
        covariances = []
        for reps in sorted_of["training"]:
            one_condition = []
            for eeg_CT in reps:
                sd = eeg_CT.std(axis=1)
                shrunk = LedoitWolf().fit(((eeg_CT - eeg_CT.mean(axis=1, keepdims=True)) / sd[:, None]).T).covariance_
                one_condition.append(np.outer(sd, sd) * shrunk)
            covariances.append(np.mean(one_condition, axis=0))
        weight_CC = scipy.linalg.fractional_matrix_power(np.mean(covariances, axis=0), -0.5)
        for partition, data in sorted_of.items():
            merged[partition].append(np.einsum("dc,nrct->nrdt", weight_CC, data))
    return {partition: np.concatenate(data, axis=1) for partition, data in merged.items()}
