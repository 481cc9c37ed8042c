"""Turn recordings and pictures into a data set, once; training then streams it.

    python jobs/ingest.py simulated --out demo                         # planted truth; presets tiny, demo, paper
    python jobs/ingest.py mne --out mine --source recordings/*.vhdr --images pictures/ --table shown.csv \\
        --window-s -0.1 0.8 --baseline-s -0.1 0 --low-hz 0.1 --high-hz 40 --resample-hz 250
    python jobs/ingest.py things-eeg2 --out things --source raw_data/ --images image_set/
    python jobs/ingest.py things-meg --out meg --source derivatives/preprocessed --images image_set/ --metadata things/
    python jobs/ingest.py perceivelab --out pl --source eeg_5_95_std.pth --images ImageNet/ \\
        --split-file block_splits_by_image_all.pth
    python jobs/ingest.py --inspect mine                               # shows again what is in it

Writes EEGVISION_HOME/datasets/NAME, or an address such as s3://bucket/NAME. A data set is there whole or not at all;
after an interruption the same command goes on where it stopped. The sessions of a large recording are read in
parallel on a Ray cluster, or on the cores of this machine.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.cli import print_line, run_job
from eegvision.ingest.prepare import Preparation
from eegvision.ingest.simulate import PRESETS, Simulation
from eegvision.ingest.sources import Recording

OnBad = Literal["fail", "drop"]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Simulate pictures and the EEG they evoke, with a planted truth."""

    out: str
    """Name of the data set, or the address where it shall be."""
    preset: Literal["tiny", "demo", "paper"] = "demo"
    """Sizes and settings that the other flags change: seconds, a laptop's, or the paper's."""
    simulation: Annotated[Simulation, tyro.conf.arg(name="")] = field(default_factory=Simulation)


@dataclass(frozen=True, kw_only=True)
class Perceivelab:
    """Read PerceiveLab's files (EEG-CVPR40): 128 channels at 1 kHz, six subjects, forty ImageNet classes."""

    out: str
    """Name of the data set, or the address where it shall be."""
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
    on_bad: OnBad = "fail"
    """What to do with a row whose EEG is not finite or constant."""


@dataclass(frozen=True, kw_only=True)
class ThingsEeg2:
    """Read THINGS-EEG2 in any of its layouts: raw sessions, Gifford's or NICE's files, whitened .pt, reshaped .npy."""

    out: str
    """Name of the data set, or the address where it shall be."""
    source: Path
    """Folder of sub-01, sub-02, ..., or one of these; which layout it is, is seen from the content."""
    images: Path
    """Folder of training_images and test_images."""
    metadata: Path | None = None
    """image_metadata.npy, to compare names and order with."""
    subjects: tuple[str, ...] = ()
    """Subjects to keep, such as sub-04; none named means all."""
    partitions: tuple[Literal["training", "test"], ...] = ("training", "test")
    """What to read."""
    unit: Literal["V", "uV"] = "V"
    """Of raw recordings; compared with their amplitudes."""
    preparation: Annotated[Preparation, tyro.conf.arg(name="")] = field(default_factory=Preparation)
    as_nice: bool = True
    """Prepare raw recordings as NICE does where no flag says otherwise (window 0 to 1 s, baseline from 0.2 s before
    onset, 250 Hz, whitened by mvnn-epochs)."""
    on_bad: OnBad = "fail"
    """What to do with a segment whose EEG is not finite or constant, or whose picture is unknown."""


@dataclass(frozen=True, kw_only=True)
class ThingsMeg:
    """Read THINGS-MEG's preprocessed epochs: four subjects, 271 sensors."""

    out: str
    """Name of the data set, or the address where it shall be."""
    source: Path
    """Folder with preprocessed_P1-epo.fif to P4."""
    images: Path
    """Folder that the paths in image_paths.csv start from; these are not THINGS-EEG2's pictures."""
    metadata: Path
    """Folder of THINGS' metadata, with image_paths.csv and image_concept_index.csv."""
    subjects: tuple[str, ...] = ()
    """Subjects to keep, such as sub-01 for P1; none named means all."""
    preparation: Annotated[Preparation, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Preparation(window_s=(0.0, 1.0))
    )
    on_bad: OnBad = "fail"
    """What to do with faulty epochs and with events that the metadata cannot explain."""


@dataclass(frozen=True, kw_only=True)
class Mne:
    """Read a lab's own recordings: anything MNE reads (FIF, EDF, BrainVision, EEGLAB, ...), or a BIDS folder."""

    out: str
    """Name of the data set, or the address where it shall be."""
    source: tuple[Path, ...]
    """Recordings (raw or epochs), or one BIDS folder."""
    images: Path
    """Folder that paths of pictures start from."""
    table: Path | None = None
    """CSV or TSV that says which picture was shown when: a column image, and event, onset_s, sample or epoch; if
    wanted label, split, subject, session, block and file. Not needed where the events name the pictures."""
    preparation: Annotated[Preparation, tyro.conf.arg(name="")] = field(default_factory=Preparation)
    subjects: tuple[str, ...] = ()
    """Subjects to keep; none named means all."""
    tasks: tuple[str, ...] = ()
    """Tasks of a BIDS folder to keep; none named means all."""
    picks: Literal["eeg", "meg", "mag"] = "eeg"
    """Kind of channels."""
    stim_channel: str | None = None
    """Where the events are: a channel's name, or annotations; needed where there are both."""
    image_column: str | None = None
    """Column of the table, or of BIDS' events.tsv, that names the picture."""
    event_column: str | None = None
    """Column of the table, or of BIDS' events.tsv, that names the event."""
    licence: str = "unknown"
    """Licence of the data, kept with them."""
    on_bad: OnBad = "fail"
    """What to do with events without a picture, rows without an event and faulty segments."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what is in a data set."""

    inspect: str
    """Name, path or address of the data set."""


def preset_of(options: Any) -> dict[str, Any]:
    """Return the preset's settings; flags go over them."""
    preset: Any = None
    if isinstance(options, Simulated):
        preset = PRESETS[options.preset]
    if isinstance(options, ThingsEeg2) and options.as_nice:
        from eegvision.ingest import things_eeg2

        preset = things_eeg2.NICE if things_eeg2.is_raw(options.source) else None
    return {name: value for name, value in vars(preset).items() if value not in (None, ())} if preset else {}


def recording_of(options: Any) -> Recording:
    """Call the reader that was chosen; each is imported when it is needed."""
    own = {name: value for name, value in vars(options).items() if name != "out"}
    if isinstance(options, Simulated):
        from eegvision.ingest import simulate

        return simulate.simulate(options.simulation, name=Path(options.out).name)
    if isinstance(options, Perceivelab):
        from eegvision.ingest import perceivelab

        names = perceivelab.read_channel_names(options.channels) if options.channels else None
        return perceivelab.read(own.pop("source"), own.pop("images"), **own | {"channels": names})
    if isinstance(options, ThingsEeg2):
        from eegvision.ingest import things_eeg2

        del own["as_nice"]  # is in the preparation
        return things_eeg2.read(own.pop("source"), own.pop("images"), **own)
    read: Callable[..., Recording]
    if isinstance(options, ThingsMeg):
        from eegvision.ingest.things_meg import read
    else:
        from eegvision.ingest.mne_epochs import read
    return read(**own)


def main(options: Any) -> None:
    """Read or simulate, write, and say what was written; or say it again."""
    from eegvision import intake
    from eegvision.ingest import assemble, shards
    from eegvision.ingest.places import place
    from eegvision.runs import named_folder

    if isinstance(options, Inspect):
        root = shards.dataset_root(options.inspect)
        manifest = shards.read_manifest(root)
        intake.draw(root, manifest)
        intake.say_what_is_in(root, manifest, print_line)
        return
    is_address = "://" in options.out
    root = place(options.out) if is_address else place(named_folder("datasets", options.out))
    assemble.refuse_existing(root)
    recording = recording_of(options)
    recording = replace(recording, header=replace(recording.header, name=root.name))
    manifest = intake.ingest(recording, root, say=print_line)
    intake.say_what_is_in(root, manifest, print_line)
    split = {3: " --data.split published", 2: " --data.split zero-shot"}.get(len(manifest.published), "")
    print_line(f"next            python jobs/sweep.py --dataset {options.out}{split}")


if __name__ == "__main__":
    wants_to_look = any(word == "--inspect" or word.startswith("--inspect=") for word in sys.argv[1:])
    kinds = Inspect if wants_to_look else Simulated | Mne | ThingsEeg2 | ThingsMeg | Perceivelab
    shown = "Turn recordings and pictures into a data set. --inspect NAME shows again what is in one."
    sys.exit(run_job(kinds, main, defaults=preset_of, description=shown))
