"""What one THINGS-EEG2 subject costs: made a data set, made one again after a kill, streamed, and at growing sizes.

    python benchmarks/ingest_things.py [convert|resume|stream|curve|all] [--scale 1.0] [--folder .] [--pairs 3]
    python benchmarks/ingest_things.py --quick       convert at --scale 0.02, one pair: about a minute

First written: the training partition in NICE's layout, a bare pickle of float64 [16540, 4, 63, 250], 8.3 GB, and tiny
pictures. `--scale 0.02` takes 2 % of the concepts. `--folder` needs 2.5 times the pickle; all is removed at the end.

- convert: file to data set with its page, in one process and as tasks of a Ray with 2 CPUs. The peer is what NICE's
  code does: `np.load(allow_pickle=True)`, mean over the repetitions, float32, `np.save`: a quarter of the samples and
  no pictures. A copy of the file says how fast the disk is.
- resume: all processes of the ingest are killed when 0.3, 0.5 and 0.7 of the segments have been read, and it is run
  again; cut into 17 parts at every scale, as the whole subject is.
- stream: passes over that data set against a DataLoader with 2 workers over a memory-mapped float32 .npy of the
  segments (`repetitions` 1), or over the means in memory (`repetitions` 0). Pictures of 16 px, nothing standardised.
- curve: convert and a streamed pass (threads) at 1/16, 1/4 and all of `--scale`: are time linear and memory flat?
  Below 0.2 there are only fixed costs and the first windows of a stream to see.

Ratios are of runs one after the other, each a fresh process whose files the page cache has dropped, and above 1 where
ours is better. Starting Python, imports (but those of Ray's workers), Ray and Ray Data are not counted. Memory is
sampled 5 times a second and summed over a process and all below it, Ray's own among them: resident counts pages of
mapped files too, and shared pages once for each process; anonymous is what the system cannot drop.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _results import tell

N_CONCEPTS, PER_CONCEPT, N_REPS, N_CHANS, N_TIMES, SFREQ_HZ = 1654, 10, 4, 63, 250, 250
N_BEFORE = 50  # entries of `times` whose samples, before onset, are cut off
PATH = "eeg/sub-01/preprocessed_eeg_training.npy"
POSTERIOR = ["P*", "O*"]  # 17 channels; P* takes PO* in
SIZE_PX, BATCH_SIZE, PASSES, CONDITIONS_AT_ONCE = 16, 64, 3, 64
N_PARTS, KILLED_AT = 17, (0.3, 0.5, 0.7)
EVERY_S, MIB = 0.2, 1 << 20
QUICK = {"what": "convert", "scale": 0.02, "pairs": 1, "folder": Path(tempfile.gettempdir())}

Found = dict[str, Any]
Figures = list[tuple[str, list[float], str]]  # what was compared, ratios, the peer


@dataclass(frozen=True, kw_only=True)
class Source:
    """A subject, and the folder where it and everything made of it lies."""

    folder: Path
    n_conditions: int

    @property
    def n_segments(self) -> int:
        return self.n_conditions * N_REPS

    @property
    def n_bytes(self) -> int:
        return 8 * self.n_segments * N_CHANS * N_TIMES

    @property
    def pictures(self) -> list[Path]:
        folder = self.folder / "image_set" / "training_images"
        numbers = (divmod(n, PER_CONCEPT) for n in range(self.n_conditions))
        return [folder / f"{n + 1:05d}_thing{n:04d}" / f"thing{n:04d}_{k + 1:02d}s.jpg" for n, k in numbers]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield [n, repetitions, channels, samples], some conditions at a time: the same noise, shifted."""
        noise = np.random.default_rng(0).standard_normal((CONDITIONS_AT_ONCE, N_REPS, N_CHANS, N_TIMES))
        for first in range(0, self.n_conditions, CONDITIONS_AT_ONCE):
            yield noise[: self.n_conditions - first] + 1e-4 * first


def make(folder: Path, scale: float) -> Source:
    """Write a subject with `scale` times the concepts, and its pictures."""
    from PIL import Image

    source = Source(folder=folder, n_conditions=PER_CONCEPT * max(2, round(N_CONCEPTS * scale)))
    needed, free = 2.5 * source.n_bytes + 20_000 * source.n_conditions, shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"error: {folder} has {free / 1e9:.1f} GB free, not {needed / 1e9:.1f}; lower --scale, or change it")
    (folder / PATH).parent.mkdir(parents=True)
    write_pickle(source)
    rng = np.random.default_rng(1)
    few = [Image.fromarray(rng.integers(256, size=(SIZE_PX, SIZE_PX, 3), dtype=np.uint8)) for _ in range(16)]
    for number, path in enumerate(source.pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        few[number % len(few)].save(path, "JPEG", comment=str(number))  # no two have one hash
    return source


def write_pickle(source: Source) -> None:
    """Write the samples as NICE's script pickles them (protocol 4), with few of them in memory at a time."""
    from eegvision.ingest.things_eeg2_files import CHANNELS_63

    def body(*values: object) -> bytes:
        # Protocol 3 numbers what it stores from 0 in every body, so bodies can be joined.
        return b"".join(pickle.dumps(value, protocol=3)[2:-1] for value in values)

    shape, times = (source.n_conditions, N_REPS, N_CHANS, N_TIMES), np.arange(-N_BEFORE, N_TIMES) / SFREQ_HZ
    with (source.folder / PATH).open("wb") as file:
        file.write(pickle.PROTO + b"\4" + pickle.EMPTY_DICT + pickle.MARK + body("preprocessed_eeg_data"))
        file.write(body(np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b")) + pickle.REDUCE)
        file.write(pickle.MARK + body(1, shape, np.dtype("f8"), False) + pickle.BINBYTES8)
        file.write(source.n_bytes.to_bytes(8, "little"))
        for block in source.blocks():
            file.write(block.data)
        file.write(pickle.TUPLE + pickle.BUILD + body("ch_names", list(CHANNELS_63), "times", times))
        file.write(pickle.SETITEMS + pickle.STOP)


def write_arrays(source: Source) -> None:
    """Write what the DataLoaders read: `segments.npy` [N, C, T] and `means.npy` [conditions, C, T], float32."""
    np.save(source.folder / "means.npy", np.concatenate([block.mean(axis=1, dtype="f4") for block in source.blocks()]))
    path, shape = source.folder / "segments.npy", (source.n_conditions, N_REPS, N_CHANS, N_TIMES)
    segments = np.lib.format.open_memmap(path, "w+", np.float32, (source.n_segments, N_CHANS, N_TIMES)).reshape(shape)
    for number, block in enumerate(source.blocks()):
        segments[number * CONDITIONS_AT_ONCE :][: len(block)] = block


# Parts: what a fresh process does. It is timed from its first yield on; a second yield tells what was found.


def copy(source: Source) -> Iterator[Found]:
    yield {}
    shutil.copyfile(source.folder / PATH, source.folder / "copy")
    os.sync()


def reference(source: Source) -> Iterator[Found]:
    yield {}
    loaded = np.load(source.folder / PATH, allow_pickle=True)
    np.save(source.folder / "reference.npy", loaded["preprocessed_eeg_data"].mean(axis=1).astype(np.float32))


def ours(source: Source, out: str, on_ray: bool, n_parts: int = 0, log: str = "") -> Iterator[Found]:
    """Make the data set; with `log`, one byte goes into that file for every segment that is read."""
    from eegvision import fanout, intake
    from eegvision.ingest import assemble, things_eeg2
    from eegvision.ingest.places import place
    from eegvision.ingest.prepare import Preparation

    for name in ("matplotlib.pyplot", "mne.channels", "pandas", "scipy.signal"):
        importlib.import_module(name)
    each: assemble.Each = assemble.in_turn
    if on_ray:
        start_ray()
        each = functools.partial(fanout.spread, peak_bytes=lambda work: work.part.peak_bytes)
    if n_parts:
        setattr(things_eeg2, "_SEGMENTS_PER_PART", -(-source.n_segments // n_parts))  # noqa: B010
    yield {}
    folders = source.folder / "eeg", source.folder / "image_set"
    recording = things_eeg2.read(*folders, preparation=Preparation(), partitions=("training",))
    if log:
        parts = [replace(part, read=functools.partial(logged, part.read, log)) for part in recording.parts]
        recording = replace(recording, parts=parts)
    root = place(source.folder / out)
    manifest = assemble.write(root, recording, each=each)
    intake.draw(root, manifest)
    assert manifest.n_segments == source.n_segments


def logged(read: Callable[..., Iterable[Any]], log: str, dropped: Any) -> Iterator[Any]:
    with Path(log).open("ab", buffering=0) as file:
        for segment in read(dropped):
            file.write(b".")
            yield segment


def passes(source: Source, repetitions: int, channels: list[str], residency: Any, on_ray: bool) -> Iterator[Found]:
    import torch

    from eegvision import stream
    from eegvision.config import DataConfig

    torch.set_num_threads(1)
    started_s = start_ray(and_data=True) if on_ray else 0.0
    chosen: Found = {"repetitions": repetitions, "channels": tuple(channels), "residency": residency}
    config = DataConfig(dataset=str(source.folder / "data"), normalise="none", crops="centre", **chosen)
    options: Found = {"config": config, "size_px": SIZE_PX, "batch_size": BATCH_SIZE, "seed": 0, "training": True}
    yield {}
    found = rates(lambda: stream.Batches(stream.load_store(config, SIZE_PX), "train", **options).passes)
    yield found | {"started": started_s}


def loader(source: Source, array: str, channels: list[str]) -> Iterator[Found]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from eegvision.ingest.things_eeg2_files import CHANNELS_63
    from eegvision.stream import IMAGE_MEAN, IMAGE_STD

    torch.set_num_threads(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    n_reps = N_REPS if array == "segments" else 1
    kept = [n for n, name in enumerate(CHANNELS_63) if name.startswith(("P", "O"))] if channels else slice(None)

    class Pairs(Dataset):
        def __init__(self) -> None:
            self.eeg = np.load(source.folder / f"{array}.npy", mmap_mode="r" if n_reps > 1 else None)
            views = [Image.open(path).convert("RGB") for path in source.pictures]
            self.images = np.stack([np.asarray(view).transpose(2, 0, 1) for view in views])

        def __len__(self) -> int:
            return n_reps * round(0.8 * source.n_conditions)

        def __getitem__(self, index: int) -> tuple:
            eeg_CT, image = np.array(self.eeg[index][kept]), index // n_reps
            view_3HW = torch.from_numpy(self.images[image]).float().div_(255).sub_(mean).div_(std)
            return torch.from_numpy(eeg_CT), view_3HW, image, image // PER_CONCEPT, index

    def opened() -> Callable[[int], Iterable[object]]:
        options: Found = {"shuffle": True, "drop_last": True, "num_workers": 2, "persistent_workers": True}
        batches = DataLoader(Pairs(), BATCH_SIZE, **options)
        return lambda _: batches

    yield {}
    yield rates(opened)


def rates(opened: Callable[[], Callable[[int], Iterable[object]]]) -> Found:
    """Return samples a second of the first pass, opening included, and of later ones."""
    laps = [time.monotonic()]
    batches_of = opened()
    for number in range(1, 2 + PASSES):
        n_samples = BATCH_SIZE * sum(1 for _ in batches_of(number))
        laps.append(time.monotonic())
    first_s, later_s = laps[1] - laps[0], float(np.median(np.diff(laps[1:])))
    return {"first": n_samples / first_s, "later": n_samples / later_s, "later_s": later_s, "samples": n_samples}


def start_ray(*, and_data: bool = False) -> float:
    import ray

    start = time.monotonic()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    if and_data:
        import ray.data

        ray.data.range(4, override_num_blocks=4).map_batches(lambda batch: batch, num_cpus=0).materialize()
    return time.monotonic() - start


PARTS = {part.__name__: part for part in (copy, reference, ours, passes, loader)}


def run_part(part: Iterator[Found]) -> None:
    next(part)  # up to where it is ready
    before = memory_of(os.getpid())
    print("ready", start := time.monotonic(), flush=True)  # a clock that all processes share
    print(json.dumps(next(part, {}) | {"seconds": time.monotonic() - start, "before": before}), flush=True)


def family(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        yield from (*(first := psutil.Process(pid)).children(recursive=True), first)


def memory_of(pid: int) -> dict[str, int]:
    """Return resident and anonymous bytes of a process and all below it."""
    held = {"rss": 0, "anonymous": 0}
    for process in family(pid):
        with contextlib.suppress(psutil.Error):
            own = process.memory_info()
            held = {"rss": held["rss"] + own.rss, "anonymous": held["anonymous"] + own.rss - own.shared}
    return held


def measured(part: str, source: Source, stop: Callable[[], bool] | None = None, **arguments: Any) -> Found:
    """Run a part in a fresh process; return what it found and its peak memory; if `stop` ends it, its seconds alone."""
    os.sync()
    for path in filter(Path.is_file, source.folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EEGVISION_"))}
    own = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "EEGVISION_HOME": str(source.folder)}
    command = [sys.executable, __file__, "--part", part, "--arguments", json.dumps(arguments)]
    command += ["--folder", str(source.folder), "--scale", str(source.n_conditions)]
    peaks, killed_at = {"rss": 0, "anonymous": 0}, 0.0
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, env=kept | own, stdout=output, stderr=subprocess.STDOUT)
        while child.poll() is None:
            if stop and stop():
                killed_at = time.monotonic()
                for process in family(child.pid):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                child.wait()
            peaks = {kind: max(peaks[kind], held) for kind, held in memory_of(child.pid).items()}
            time.sleep(0.01 if stop else EVERY_S)
        output.seek(0)
        lines = output.read().decode().splitlines()
    if bool(child.returncode) != bool(stop):
        sys.exit("\n".join([f"error: {part} {arguments} ended with {child.returncode}", *lines[-20:]]))
    if stop:
        return {"seconds": killed_at - next(float(line.split()[1]) for line in lines if line.startswith("ready"))}
    return json.loads(next(line for line in reversed(lines) if line.startswith("{"))) | peaks


def removed(folder: Path, *names: str) -> None:
    for path in (folder / name for name in names):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def middle(found: Sequence[Found], name: str) -> float:
    return statistics.median(one[name] for one in found)


def spread(above: Iterable[float], below: Iterable[float]) -> str:
    values = [one / other for one, other in zip(above, below, strict=True)]
    return f"{min(values):.2f} | **{statistics.median(values):.2f}** | {max(values):.2f}"


def table(title: str, columns: str, rows: Iterable[str]) -> None:
    print(f"\n{title}\n\n| {columns} |\n|" + "---|" * (1 + columns.count("|")))
    print(*(f"| {row} |" for row in rows), sep="\n", flush=True)


def convert(source: Source, pairs: int) -> Figures:
    ways: dict[str, Found] = {"copy": {}, "reference": {}}
    ways |= {f"ours, {name}": {"out": "made", "on_ray": name == "Ray"} for name in ("one process", "Ray")}
    found: dict[str, list[Found]] = {name: [] for name in ways}
    for pair in range(pairs):
        for name in list(ways)[:: 1 if pair % 2 == 0 else -1]:
            found[name].append(measured(name.split(",")[0], source, **ways[name]))
            removed(source.folder, "copy", "reference.npy", "made")
    took = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        before, own_s = [one["before"] for one in runs], middle(runs, "seconds")
        peaks = [f"{middle(runs, kind) / MIB:.0f} ({middle(before, kind) / MIB:.0f})" for kind in ("rss", "anonymous")]
        speed, cells = f"{own_s:.1f} | {source.n_bytes / 1e6 / own_s:.0f}", " | ".join(peaks)
        rows.append(f"{name} | {spread(took['reference'], took[name])} | {speed} | {cells} | {pairs}")
    columns = "way | min | median | max | s | source, MB/s | resident (before), MiB | anonymous (before), MiB | pairs"
    table("convert: the reference's time over each, and peaks of memory", columns, rows)
    ratios = [one / own for one, own in zip(took["reference"], took["ours, one process"], strict=True)]
    share = source.n_conditions / (PER_CONCEPT * N_CONCEPTS)
    return [(f"{share:.0%} of NICE's file to a data set, one process", ratios, "np.load, mean, np.save")]


def resume(source: Source, pairs: int) -> Figures:
    log, rows, figures = source.folder / "read.log", [], []
    for name, on_ray in (("one process", False), ("Ray", True)):
        way: Found = {"out": "made", "on_ray": on_ray, "n_parts": N_PARTS}
        twice, whole, broken = [], [], []
        for share in (KILLED_AT * pairs)[:pairs]:
            whole.append(measured("ours", source, **way)["seconds"])
            removed(source.folder, "made")
            stop = functools.partial(lambda n: log.exists() and log.stat().st_size >= n, share * source.n_segments)
            first_s = measured("ours", source, stop, **way, log=str(log))["seconds"]
            broken.append(first_s + measured("ours", source, **way, log=str(log))["seconds"])
            twice.append(100 * (log.stat().st_size / source.n_segments - 1))
            removed(source.folder, "made", "read.log")
        cells = f"{spread(whole, broken)} | {statistics.median(broken):.1f} | {statistics.median(whole):.1f} | {pairs}"
        rows.append(f"seconds in one go / killed and again, {name} | {cells}")
        rows.append(f"segments read twice, %, {name} | {spread(twice, [1.0] * pairs)} | | | {pairs}")
        ratios = [one / two for one, two in zip(whole, broken, strict=True)]
        figures.append((f"killed and made again, {name}", ratios, "made in one go"))
    title = f"resume: {N_PARTS} parts of {-(-source.n_segments // N_PARTS)} segments"
    table(title, "what | min | median | max | killed and again, s | in one go, s | pairs", rows)
    return figures


def stream(source: Source, pairs: int) -> Figures:
    write_arrays(source)
    measured("ours", source, out="data", on_ray=False)
    rows, starts, figures = [], [], []
    for repetitions, channels in itertools.product((1, 0), ([], POSTERIOR)):
        ways: dict[str, tuple[str, Found]] = {"peer": ("loader", {"array": "segments" if repetitions else "means"})}
        for home, by in (("host", "Ray"), ("stream", "Ray"), ("stream", "threads")):
            way: Found = {"repetitions": repetitions, "residency": home, "on_ray": by == "Ray"}
            ways[f"{home}, {by}"] = ("passes", way)
        found: dict[str, list[Found]] = {name: [] for name in ways}
        for pair in range(pairs):
            for name in list(ways)[:: 1 if pair % 2 == 0 else -1]:
                found[name].append(measured(ways[name][0], source, channels=channels, **ways[name][1]))
        peers = found.pop("peer")
        for (name, own), kind in itertools.product(found.items(), ("first", "later")):
            starts += [one["started"] for one in own if one["started"]]
            cells = [f"{middle(runs, kind):.0f}" for runs in (own, peers)]
            cells += [f"{middle(runs, 'anonymous') / MIB:.0f}" for runs in (own, peers)]
            ratios = spread([one[kind] for one in own], [one[kind] for one in peers])
            what = f"{kind} pass, {name}; repetitions {repetitions}, {17 if channels else N_CHANS} channels"
            rows.append(f"{what} | {ratios} | {' | '.join(cells)} | {pairs}")
            each = [one[kind] / peer[kind] for one, peer in zip(own, peers, strict=True)]
            figures.append((what, each, "DataLoader with 2 workers"))
    title = f"stream: batches of {BATCH_SIZE}; Ray and Ray Data start in {statistics.median(starts):.1f} s, not counted"
    table(title, "what | min | median | max | ours, 1/s | peer, 1/s | ours, MiB | peer, MiB | pairs", rows)
    removed(source.folder, "data", "segments.npy", "means.npy")
    return figures


def curve(folder: Path, scale: float, pairs: int) -> Figures:
    found: dict[str, list[tuple[int, float, float]]] = {"convert": [], "pass": []}  # segments, seconds, MiB
    for share in (16, 4, 1):
        (folder / f"share-{share}").mkdir()
        source = make(folder / f"share-{share}", scale / share)
        made, streamed = [], []
        for _ in range(pairs):
            removed(source.folder, "data")
            made.append(measured("ours", source, out="data", on_ray=False))
            streamed.append(measured("passes", source, repetitions=1, channels=[], residency="stream", on_ray=False))
        found["convert"].append((source.n_segments, middle(made, "seconds"), middle(made, "anonymous") / MIB))
        found["pass"].append((streamed[0]["samples"], middle(streamed, "later_s"), middle(streamed, "anonymous") / MIB))
        removed(folder, f"share-{share}")
    rows, figures = [], []
    for kind, sizes in found.items():
        rows += [f"{kind} | {n} | {s:.2f} | {1000 * s / n:.3f} | | {mib:.0f}" for n, s, mib in sizes]
        (n1, s1, mib1), (n4, s4, _), (n16, s16, mib16) = sizes
        further = (s16 - s4) / (n16 - n4) / ((s4 - s1) / (n4 - n1))
        rows.append(f"{kind}: last / first | | | {s16 / n16 / (s1 / n1):.2f} | {further:.2f} | {mib16 / mib1:.2f}")
        figures.append((f"{kind}: further segments, 4x to 16x the data", [further], "1x to 4x"))
    columns = "what | segments | s | s per 1,000 | the same of further ones: 4x to 16x over 1x to 4x | anonymous, MiB"
    table("curve (linear and flat: ratios of 1)", columns, rows)
    return figures


def main() -> None:
    questions = {"convert": convert, "resume": resume, "stream": stream}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=[*questions, "curve", "all"], default="all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the concepts, above 0 and at most 1")
    parser.add_argument("--folder", type=Path, default=Path(), help="where there is room for the files")
    parser.add_argument("--pairs", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    if options.part:
        source = Source(folder=options.folder, n_conditions=int(options.scale))
        run_part(PARTS[options.part](source, **options.arguments))
        return
    machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / (1 << 30):.0f} GiB"
    print(f"{time.strftime('%Y-%m-%d')}: {machine}, --scale {options.scale:g}")
    figures: Figures = []
    with tempfile.TemporaryDirectory(dir=options.folder.absolute(), prefix="ingest-things-") as folder:
        if options.what != "curve":
            source = make(Path(folder), options.scale)
            print(f"{source.n_bytes / 1e9:.2f} GB, {source.n_segments} segments, {source.n_conditions} pictures")
            for name in questions if options.what == "all" else [options.what]:
                figures += questions[name](source, options.pairs)
            removed(source.folder, "eeg", "image_set")
        if options.what in ("curve", "all"):
            figures += curve(Path(folder), options.scale, options.pairs)
    for what, ratios, peer in figures:
        tell(what, ratios, peer=peer)


if __name__ == "__main__":
    main()
