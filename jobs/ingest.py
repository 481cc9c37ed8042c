"""Turn recordings and pictures into a data set, once; training then streams it.

    python jobs/ingest.py simulated --out demo                         # planted truth; presets tiny, demo, paper
    python jobs/ingest.py perceivelab --out pl --source eeg_5_95_std.pth --images ImageNet/ \\
        --split-file block_splits_by_image_all.pth

Writes EEGVISION_HOME/datasets/NAME, whole or not at all.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.cli import print_line, run_job
from eegvision.ingest.simulate import PRESETS, Simulation


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Simulate pictures and the EEG they evoke, with a planted truth."""

    out: str
    """Name of the data set."""
    preset: Literal["tiny", "demo", "paper"] = "demo"
    """Sizes and settings that the other flags change: seconds, a laptop's, or the paper's."""
    simulation: Annotated[Simulation, tyro.conf.arg(name="")] = field(default_factory=Simulation)


@dataclass(frozen=True, kw_only=True)
class Perceivelab:
    """Read PerceiveLab's files (EEG-CVPR40): 128 channels at 1 kHz, six subjects, forty ImageNet classes."""

    out: str
    """Name of the data set."""
    source: Path
    """EEG file: eeg_5_95_std.pth, eeg_14_70_std.pth, eeg_55_95_std.pth or eeg_signals_raw_with_mean_std.pth."""
    images: Path
    """Folder with the pictures, as STEM.JPEG or SYNSET/STEM.JPEG."""
    split_file: Path | None = None
    """Published split: block_splits_by_image_all.pth or block_splits_by_image_single.pth."""
    split_index: int = 0
    """Which split of that file."""
    subjects: tuple[str, ...] = ()
    """Subjects to keep, such as sub-04; none named means all."""
    cut: str = "20:460"
    """First sample and the one after the last: 20:460 as the released code, 40:480 as the paper."""
    standardise: bool = True
    """Apply the means and standard deviations of the raw file."""
    channels: Path | None = None
    """Text file with one channel name per line; by default the actiCAP-128 order is assumed."""
    on_bad: Literal["fail", "drop"] = "fail"
    """What to do with a row whose EEG is not finite or constant."""


def preset_of(options: Any) -> dict[str, Any]:
    """Return the preset's settings; flags go over them."""
    if isinstance(options, Simulated):
        return {name: value for name, value in vars(PRESETS[options.preset]).items() if value is not None}
    return {}


def main(options: Any) -> None:
    """Read or simulate, write, and say what was written."""
    from eegvision.ingest import perceivelab, shards, simulate
    from eegvision.runs import named_folder

    root = named_folder("datasets", options.out)
    if isinstance(options, Simulated):
        recording = simulate.simulate(options.simulation, name=options.out)
    else:
        recording = perceivelab.read(
            options.source,
            options.images,
            split_file=options.split_file,
            split_index=options.split_index,
            subjects=options.subjects,
            cut=options.cut,
            standardise=options.standardise,
            channels=perceivelab.read_channel_names(options.channels) if options.channels else None,
            on_bad=options.on_bad,
        )
        recording = replace(recording, header=replace(recording.header, name=options.out))
    print_line(f"writing {root} ...")
    manifest = shards.write_recording(root, recording)
    print_line(
        f"{manifest.n_segments} segments of {manifest.n_chans} channels x {manifest.n_times} samples at "
        f"{manifest.sfreq_hz:g} Hz in {manifest.unit}, {len(manifest.subjects)} subjects, "
        f"{manifest.n_images} images of {len(manifest.classes)} classes"
    )
    for reason, count in manifest.dropped.items():
        print_line(f"left out: {count} ({reason})")
    print_line(f"next: python jobs/sweep.py --dataset {options.out}")


if __name__ == "__main__":
    sys.exit(run_job(Simulated | Perceivelab, main, defaults=preset_of))
