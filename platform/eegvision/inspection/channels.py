"""Channel importance and partial views of a trained model: plan, chunks of samples over the cluster, what is left.

    RUN/channels/TRIAL.SIDE.HASH/importance.csv  views.csv  summary.json  figures/

Axes: N samples of the side, M pictures of the side, K stretches of time (the whole segment, then intervals),
C channels, D embedding, R draws of noise, U units.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eegvision import cluster, fanout
from eegvision.analyses.channels import (
    PALAZZO_INTERVALS_S,
    ChannelImportance,
    Encoded,
    Noise,
    channel_changes,
    importance_of,
    joined,
    samples_of,
)
from eegvision.analyses.windows import (
    Ranked,
    View,
    band_views,
    embed_view,
    growing_windows,
    rank_view,
    region_views,
    regions_of,
    shrinking_windows,
    sliding_windows,
)
from eegvision.assess.scores import Question, groups_of
from eegvision.fanout import Chunk, Results
from eegvision.ingest.shards import Manifest
from eegvision.inspection import channel_tables
from eegvision.inspection.channel_settings import ChannelSettings
from eegvision.inspection.channel_tables import Circumstances, Stretch
from eegvision.inspection.opened import Bench, Opened, log_run, open_run, require_both_sides
from eegvision.stream import Store
from eegvision.vocab import InputError, SplitName

Say = Callable[[str], None]

_CHUNK = 64  # samples at most; what changes of embeddings take: 140 MB at 128 channels, 4 draws and D = 1024
_COPIES = 40_000  # of samples that a chunk encodes, about: minutes on a CPU even for a recurrent encoder
_TARGETS = ("own", "specific")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is computed of every sample: all that decides the contents of chunks, beside model and data."""

    noise: Noise
    intervals_s: tuple[tuple[float, float], ...]
    samples: tuple[tuple[int, int], ...]
    views: tuple[tuple[str, View], ...]
    """With the kind of each: all, spatial, spectral, growing, shrinking, sliding."""


def run_channels(
    name: str,
    *,
    trial: int | None,
    side: SplitName,
    settings: ChannelSettings,
    again: str | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    say: Say,
) -> Path:
    """Measure channels, intervals and views of a trial of the run `name` (the best one, if no number is given).

    Leaves tables, figures and a summary in the folder that is returned, and an MLflow run. What was computed before is
    not computed again.

    Args:
        again: why the test set is opened although another model of the run was scored on it.
        cpus, gpus: of each worker; by default a GPU where the cluster has any.
    Raises:
        InputError: there is no such run or trial, its data have changed, it knows one side alone; or an interval,
            region or category does not fit the data.
    """
    cluster.enter(say)
    purpose = "channel importance of the best trial" if trial is None else f"channel importance of trial {trial}"
    opened = open_run(name, trial=trial, side=side, purpose=purpose, again=again, say=say)
    require_both_sides(opened)
    store = opened.store_of(opened.load(), has_pictures=False)
    plan, notes = plan_of(settings, store.manifest)
    rows = store.split.rows[side]
    row_N = rows[np.argsort(store.segment_id_N[rows])]
    if len(np.unique(store.image_N[row_N])) < 2:
        raise InputError(f"the {side} side shows one picture, so nothing can be told apart; use another split")
    groups = groups_of(
        Question(categories=settings.categories), store.manifest.classes, store.label_N[row_N], store.subject_N[row_N]
    )
    folder = opened.folder("channels", plan)
    say(
        f"{name}, trial {opened.number}: channels on the {side} side, {len(row_N)} segments x {len(plan.samples) + 1} "
        f"stretches of time x {store.manifest.n_chans} channels x {settings.draws} draws, {len(plan.views)} views"
    )
    for note in notes:
        say(f"note: {note}")
    found = fanout.compute(
        partial(_prepare, opened, plan),
        chunks_of(store, side, plan),
        folder,
        identity=opened.identity("channels", plan),
        unit="segment",
        say=say,
        cpus=cpus,
        gpus=float(cluster.size()[1] > 0) if gpus is None else gpus,
    )
    circumstances = Circumstances(
        row_N=row_N,
        store=store,
        groups={"all": np.full(len(row_N), "all"), **groups},
        noise=plan.noise,
        seed=settings.seed,
        notes=notes,
    )
    report = channel_tables.write(
        folder,
        (_stretch(found, part, plan, store.manifest.channels) for part in range(len(plan.samples) + 1)),
        _views(found, plan),
        circumstances,
        opened.about(settings),
    )
    say(f"\n{report.text}\n")
    log_run(
        opened, "channels", folder, settings=settings, metrics=report.metrics, note=f"```\n{report.text}\n```", say=say
    )
    return folder


# ---- what is to be done


def plan_of(settings: ChannelSettings, manifest: Manifest) -> tuple[Plan, list[str]]:
    """Return what is to be computed for a data set, and what had to be left out.

    Raises:
        InputError: an interval leaves the segments, windows do not fit them, or regions name other channels.
    """
    place = {"t_min_s": manifest.t_min_s, "sfreq_hz": manifest.sfreq_hz, "n_times": manifest.n_times}
    notes: list[str] = []
    if settings.intervals_s is None:
        end_s = manifest.t_min_s + manifest.n_times / manifest.sfreq_hz
        intervals_s = tuple(
            each for each in PALAZZO_INTERVALS_S if manifest.t_min_s <= each[0] + 1e-9 and each[1] <= end_s + 1e-9
        )
        if missing := [each for each in PALAZZO_INTERVALS_S if each not in intervals_s]:
            named = ", ".join(f"{low:g} to {high:g} s" for low, high in missing)
            notes.append(f"intervals left out, since segments run from {manifest.t_min_s:g} to {end_s:g} s: {named}")
    else:
        intervals_s = settings.intervals_s
    noise = Noise(sfreq_hz=manifest.sfreq_hz, cutoff_hz=settings.cutoff_hz, n_draws=settings.draws, seed=settings.seed)
    if not noise.is_filtered:
        notes.append(
            f"the noise is white: its cutoff of {noise.cutoff_hz:g} Hz is not below half the rate, "
            f"{noise.sfreq_hz / 2:g} Hz"
        )
    samples = tuple(samples_of(each, **place) for each in intervals_s)
    views: list[tuple[str, View]] = []
    if settings.views:
        views = _views_of(settings, manifest, notes)
    return Plan(noise=noise, intervals_s=intervals_s, samples=samples, views=tuple(views)), notes


def _views_of(settings: ChannelSettings, manifest: Manifest, notes: list[str]) -> list[tuple[str, View]]:
    place = {"t_min_s": manifest.t_min_s, "sfreq_hz": manifest.sfreq_hz, "n_times": manifest.n_times}
    regions: Mapping[str, Sequence[str]] = {}
    if settings.regions is not None:
        regions = read_regions(settings.regions)
    else:
        try:
            regions = regions_of(manifest.channels)
        except InputError as error:
            notes.append(f"no views of regions: {str(error).partition(';')[0]}; name them with --regions FILE.csv")
    spatial = [view for view in region_views(manifest.channels, regions)[1:] if view.channels]
    step_s, width_s = settings.window_step_s, settings.window_width_s
    return [
        ("all", View(name="all")),
        *(("spatial", view) for view in spatial),
        *(("spectral", view) for view in band_views(manifest.sfreq_hz)[1:]),
        *(("growing", view) for view in growing_windows(step_s, **place)),
        *(("shrinking", view) for view in shrinking_windows(step_s, **place)),
        *(("sliding", view) for view in sliding_windows(step_s, width_s, **place)),
    ]


def read_regions(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the channels of each region from a CSV with the columns region and channel.

    Raises:
        InputError: the file cannot be read, a line lacks one of them, or there is no line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the regions {path}: {error}") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=2):
        if not line.get("region") or not line.get("channel"):
            raise InputError(f"{path}, line {number}: expected the columns region and channel, both filled")
        found.setdefault(line["region"], []).append(line["channel"])
    if not found:
        raise InputError(f"{path} names no region; give a line 'region,channel' for each channel of each region")
    return {region: tuple(dict.fromkeys(names)) for region, names in found.items()}


def chunks_of(store: Store, side: SplitName, plan: Plan) -> list[Chunk]:
    """Return the samples of a side in chunks, picture by picture."""
    rows = store.split.rows[side]
    n_copies = store.manifest.n_chans * plan.noise.n_draws * (1 + len(plan.samples))
    size = min(_CHUNK, max(8, _COPIES // n_copies))
    row_N = rows[np.lexsort([rows, store.image_N[rows]])]
    parts = np.split(row_N, range(size, len(row_N), size))
    return [Chunk(key=f"{number:06d}", item=part.tolist(), size=len(part)) for number, part in enumerate(parts)]


# ---- in a worker


def _prepare(opened: Opened, plan: Plan) -> Callable[[Sequence[int]], Mapping[str, np.ndarray]]:
    bench = Bench(opened)
    return partial(_measure, bench, bench.image_embeddings(bench.image_M), plan)


@torch.no_grad()
def _measure(bench: Bench, gallery_MD: torch.Tensor, plan: Plan, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Return what is kept of a chunk: importance of every stretch and target, rank and margin of every view."""
    store, row_N = bench.store, np.asarray(rows)
    ids, channels = store.segment_id_N[row_N].tolist(), store.manifest.channels
    column_N = np.searchsorted(bench.image_M, store.image_N[row_N])
    eeg_NCT, subject_N = bench.eeg(row_N)
    own_ND = gallery_MD[torch.from_numpy(column_N).to(gallery_MD.device)]
    targets = {"own": own_ND, "specific": own_ND - gallery_MD.mean(0)}
    arrays: dict[str, np.ndarray] = {"segment_id": np.array(ids)}
    for part, samples in enumerate((None, *plan.samples)):
        changes = channel_changes(bench.model, eeg_NCT, ids, channels, plan.noise, samples=samples, subject_B=subject_N)
        arrays[f"encoded_{part}"] = np.array(changes.encoded)
        for target in _TARGETS:
            found = importance_of(changes, targets[target], ids, channels, plan.noise, samples=samples)
            arrays[f"importance_{target}_{part}"] = found.importance_NC
            arrays[f"draw_error_{target}_{part}"] = found.draw_error_NC
            arrays[f"compatibility_{target}_{part}"] = found.compatibility_N
    target_of = dict(zip(ids, column_N.tolist(), strict=True))
    gallery = gallery_MD.cpu().numpy()
    for number, (_, view) in enumerate(plan.views):
        seen = embed_view(bench.model, eeg_NCT, ids, channels, view, plan.noise, subject_B=subject_N)
        ranked = rank_view(seen, gallery, target_of)
        arrays |= {
            f"rank_{number}": ranked.rank_NR.astype(np.int32),
            f"margin_{number}": ranked.margin_NR,
            f"seen_{number}": np.array([ranked.encoded, str(ranked.has_noise)]),
        }
    return arrays | {"column": column_N, "n_gallery": np.array(len(gallery))}


# ---- chunks put together


def _stretch(found: Results, part: int, plan: Plan, channels: Sequence[str]) -> Stretch:
    """Return the importance in one stretch of time; only what it takes is in memory at once."""
    pieces: dict[str, list[ChannelImportance]] = {target: [] for target in _TARGETS}
    for key in found.keys:
        arrays = found.read(key)
        encoded: Encoded = arrays[f"encoded_{part}"].item()
        for target in _TARGETS:
            pieces[target].append(
                ChannelImportance(
                    segment_ids=tuple(arrays["segment_id"].tolist()),
                    channels=tuple(channels),
                    compatibility_N=arrays[f"compatibility_{target}_{part}"],
                    importance_NC=arrays[f"importance_{target}_{part}"],
                    draw_error_NC=arrays[f"draw_error_{target}_{part}"],
                    noise=plan.noise,
                    samples=plan.samples[part - 1] if part else None,
                    encoded=encoded,
                )
            )
    interval_s = plan.intervals_s[part - 1] if part else None
    return Stretch(interval_s=interval_s, own=joined(pieces["own"]), specific=joined(pieces["specific"]))


def _views(found: Results, plan: Plan) -> list[tuple[str, list[Ranked]]]:
    """Return, for every view, its kind and its chunks."""
    views: list[tuple[str, list[Ranked]]] = [(kind, []) for kind, _ in plan.views]
    for key in found.keys if views else ():
        arrays = found.read(key)
        for number, (_, view) in enumerate(plan.views):
            encoded, has_noise = arrays[f"seen_{number}"].tolist()
            views[number][1].append(
                Ranked(
                    view=view,
                    noise=plan.noise,
                    segment_ids=tuple(arrays["segment_id"].tolist()),
                    target_N=arrays["column"],
                    rank_NR=arrays[f"rank_{number}"],
                    margin_NR=arrays[f"margin_{number}"],
                    n_gallery=int(arrays["n_gallery"]),
                    has_noise=has_noise == "True",
                    encoded=encoded,
                )
            )
    return views
