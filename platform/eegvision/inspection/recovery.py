"""Do the analyses find what was planted? Simulated recordings, trained models and controls that must find nothing.

    RUN/recovery/table.txt  scores.csv  summary.json  figures/  report.html
    RUN/recovery/seed-SEED.HASH/    what was computed of the models of one recording

For every seed a recording is simulated and three models are trained on it: one as it should be; one whose learning rate
is nothing, so that weights stay as they were drawn; one on pictures and segments paired at random. All three are looked
at with the pictures that were shown, and what saliency, channels, intervals and associations say is scored against the
truth.

Axes: M pictures, N segments, K stretches of time (the whole segment, before the response, early, late), C channels,
D embedding, F feature maps, Q all pictures, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from eegvision import cluster, fanout, grid, intake, runs
from eegvision.analyses.association import find_layers, map_effects, module_of, network_of
from eegvision.analyses.channels import Noise, channel_changes, samples_of
from eegvision.analyses.suppression import Fast, saliency_map
from eegvision.config import RunConfig
from eegvision.evaluate import planted
from eegvision.evaluate.planted import Found, LayerEffects
from eegvision.fanout import Chunk, Results
from eegvision.grid import Cell
from eegvision.ingest import shards, simulate
from eegvision.ingest.places import place
from eegvision.inspection import recovery_page
from eegvision.inspection.opened import Bench, Opened, open_run
from eegvision.inspection.recovery_settings import RecoverySettings
from eegvision.inspection.recovery_truth import (
    ARMS,
    BEFORE_S,
    EARLY_S,
    LATE_S,
    Arm,
    low_level,
    masks_of,
    projections,
    sized,
)
from eegvision.inspection.saliency import scales_of, spread_over_classes
from eegvision.tracking import Tracker, code_version
from eegvision.vocab import InputError

Say = Callable[[str], None]
Part = Literal["saliency", "channels", "association"]

PARTS: tuple[Part, ...] = ("saliency", "channels", "association")

_NO_LEARNING = {"optim.lr": 1e-12, "train.max_passes": 2}  # passes only fill the statistics of normalisations
_OF_ASSOCIATION = [0, 2, 3]  # of the stretches: whole segment, early, late
_SEGMENTS = 64  # whose channels are replaced at a time


def run_recovery(
    name: str,
    base: RunConfig,
    *,
    settings: RecoverySettings,
    cpus: float = 1.0,
    gpus: float | None = None,
    say: Say,
) -> Path:
    """Simulate, train, look inside and score against the truth; what is done is not done again.

    Args:
        base: how models are trained; data set, seed and split are set here.
        cpus, gpus: of each training and each worker; by default a GPU where the cluster has any.
    Returns:
        The folder with page, table, scores, summary and figures.
    Raises:
        InputError: settings make no recording, the model is not a joint one with a network from pixels, a data set of
            the study's is another recording, or a training does not finish.
        RunInUseError: the name belongs to another study, or another process works on it.
    """
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    recordings = {seed: _recording(settings, seed) for seed in seeds}  # refused before the name is taken
    _require_maps(base)
    folder = runs.named_folder("runs", name)
    identity = {"recipe": "recovery of what was planted", **dataclasses.asdict(settings), "base": base.fingerprint()}
    identity.pop("seeds")  # more may join
    with runs.sole_owner(folder):
        runs.claim(folder, identity)
        runs.note_command(folder)
        cluster.enter(say)
        tags = {"eegvision.kind": "recovery", "eegvision.code": code_version()}
        with Tracker(folder / "spool", experiment=name) as tracker:
            tracker.start(name, name=name, params=identity, tags=tags)
            for seed, options in recordings.items():
                _simulate(dataset_name(name, seed), options, say)
            cells = [_cell(name, base, arm, seed) for seed in seeds for arm in ARMS]
            say(f"{name}: {len(cells)} trainings, {settings.seeds} recordings x ({', '.join(ARMS)})")
            rows = grid.fit_all(cells, folder, say=say, cpus=cpus, gpus=gpus, tracker=tracker)
            if failed := grid.failures(rows):
                raise InputError(
                    f"{len(failed)} of {len(rows)} trainings did not finish: {'; '.join(failed[:3])}; what is finished "
                    "is kept: mend the settings and repeat the command"
                )
            opened = {
                cell.key: open_run(name, trial=number, side="val", purpose="recovery", say=say)
                for number, cell in enumerate(cells, start=1)
            }
            work = folder / "recovery"
            held_gpus = float(cluster.size()[1] > 0) if gpus is None else gpus
            found = {seed: _look_into(opened, seed, work, settings, say, cpus, held_gpus) for seed in seeds}
            scores = {
                seed: {arm: scores_of(own, opened[f"{arm}-{seed}"], seed) for arm in ARMS}
                for seed, own in found.items()
            }
            text, metrics = recovery_page.write(work, scores, found[seeds[0]], opened, base, settings)
            tracker.metrics(name, metrics, step=settings.seeds)  # of one step MLflow keeps what it was told first
            tracker.note(name, f"```\n{text}\n```")
            for file in sorted([*work.glob("[!.]*.*"), *(work / "figures").glob("*")]):
                if file.is_file():
                    tracker.artifact(name, file, folder="figures" if file.parent.name == "figures" else "")
            tracker.finish(name, "FINISHED")
    say(f"\n{text}\n\npage                {work / 'report.html'}\nfiles               {work}")
    return work


def _require_maps(base: RunConfig) -> None:
    """Raise `InputError`, before anything is trained, unless the analyses can look into models of these settings."""
    if base.loss.arm != "joint":
        raise InputError(f"loss.name is {base.loss.name!r}, which knows one side alone; choose that of a joint model")
    if base.image.encoder in ("file", "random-codebook"):
        raise InputError(
            f"image.encoder is {base.image.encoder!r}, which runs no network from pixels; choose one that does"
        )
    if base.data.control is not None:
        raise InputError(
            f"data.control is {base.data.control!r}; leave it out, since controls are trained beside each model"
        )


def _recording(settings: RecoverySettings, seed: int) -> simulate.Simulation:
    return simulate.Simulation(
        seed=seed,
        snr=settings.snr,
        n_chans=settings.channels,
        n_subjects=settings.subjects,
        n_classes=settings.classes,
        images_per_class=settings.images_per_class,
    )


def dataset_name(name: str, seed: int) -> str:
    """Return the name of a recording of the study."""
    return f"{name}-{seed}"


def _simulate(dataset: str, options: simulate.Simulation, say: Say) -> None:
    """Make a recording unless it is there; refuse another one of its name."""
    root = runs.named_folder("datasets", dataset)
    if not (root / shards.MANIFEST_NAME).exists():
        intake.ingest(simulate.simulate(options, name=dataset), place(root), say=say)
    there = shards.read_manifest(root).truth.get("options")
    if there != json.loads(json.dumps(dataclasses.asdict(options))):
        raise InputError(f"the data set {dataset!r} is another recording; give this study another --name")


def _cell(name: str, base: RunConfig, arm: Arm, seed: int) -> Cell:
    own = base.with_overrides({"data.dataset": dataset_name(name, seed), "seed": seed})
    if arm == "untrained":
        own = own.with_overrides(_NO_LEARNING)
    if arm == "shuffled":
        own = own.with_overrides({"data.control": "shuffled-pairs"})
    return Cell(key=f"{arm}-{seed}", config=own)


def _look_into(
    opened: Mapping[str, Opened], seed: int, work: Path, settings: RecoverySettings, say: Say, cpus: float, gpus: float
) -> Results:
    """Return what the analyses find in the models of one recording, computed unless it is there.

    Each recording has a folder of its own, so that those that join later leave it as it is.
    """
    own = {arm: opened[f"{arm}-{seed}"] for arm in ARMS}
    models = {arm: one.model_sha256 for arm, one in own.items()}
    identity = {"models": models, "draws": settings.draws, "mapped": settings.mapped}
    what = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:6]
    return fanout.compute(
        partial(_prepare, settings),
        [Chunk(key=f"{part}.{arm}", item=(part, one)) for arm, one in own.items() for part in PARTS],
        work / f"seed-{seed}.{what}",
        identity=identity,
        unit="part",
        say=say,
        cpus=cpus,
        gpus=gpus,
    )


# ---- in a worker


def _prepare(settings: RecoverySettings) -> Callable[[tuple[Part, Opened]], dict[str, np.ndarray]]:
    look = {"saliency": _saliency, "channels": _channels, "association": _association}
    return lambda item: look[item[0]](Bench(item[1]), settings)


@torch.no_grad()
def _eeg_of_pictures(bench: Bench, image_M: np.ndarray) -> torch.Tensor:
    """Return the mean embedding of each picture's segments, [M, D]."""
    means = []
    for image in image_M.tolist():
        eeg_BCT, subject_B = bench.eeg(bench.rows_of(image))
        means.append(bench.model.encode_eeg(eeg_BCT, subject_B).mean(0))
    return torch.stack(means)


def _saliency(bench: Bench, settings: RecoverySettings) -> dict[str, np.ndarray]:
    image_M = spread_over_classes(bench.store, bench.image_M, settings.mapped, seed=0)
    _, size_px = network_of(bench.model)
    maps = []
    for phi_D, image in zip(_eeg_of_pictures(bench, image_M), image_M.tolist(), strict=True):
        pixel_3HW = bench.pixels(np.array([image]))[0]
        found = saliency_map(bench.model, phi_D[None], pixel_3HW, scales_px=scales_of(None, size_px), engine=Fast())
        maps.append(found.map_NHW[0])
    return {"map_MHW": np.stack(maps), "image_id_M": bench.store.image_id_M[image_M].astype(np.str_)}


@torch.no_grad()
def _changes(bench: Bench, settings: RecoverySettings) -> torch.Tensor:
    """Return Δφ_c of every picture, the mean over its segments and draws: [M, K, C, D], float64."""
    store, manifest = bench.store, bench.store.manifest
    noise = Noise(sfreq_hz=manifest.sfreq_hz, n_draws=settings.draws)
    stretches = [None] + [
        samples_of(each, t_min_s=manifest.t_min_s, sfreq_hz=manifest.sfreq_hz, n_times=manifest.n_times)
        for each in (BEFORE_S, EARLY_S, LATE_S)
    ]
    row_N = np.concatenate([bench.rows_of(image) for image in bench.image_M.tolist()])
    column_N = np.searchsorted(bench.image_M, store.image_N[row_N])
    count_M = np.bincount(column_N)
    total_MKCD: torch.Tensor | None = None
    for part in np.split(np.arange(len(row_N)), range(_SEGMENTS, len(row_N), _SEGMENTS)):
        eeg_BCT, subject_B = bench.eeg(row_N[part])
        ids = store.segment_id_N[row_N[part]].tolist()
        change_BKCD = torch.stack(
            [
                channel_changes(
                    bench.model, eeg_BCT, ids, manifest.channels, noise, samples=samples, subject_B=subject_B
                ).change_BRCD.mean(1).double()
                for samples in stretches
            ],
            dim=1,
        )  # fmt: skip
        if total_MKCD is None:
            total_MKCD = change_BKCD.new_zeros(len(count_M), *change_BKCD.shape[1:])
        total_MKCD.index_add_(0, torch.from_numpy(column_N[part]).to(change_BKCD.device), change_BKCD)
    assert total_MKCD is not None
    return total_MKCD / torch.from_numpy(count_M).to(total_MKCD).reshape(-1, 1, 1, 1)


def _channels(bench: Bench, settings: RecoverySettings) -> dict[str, np.ndarray]:
    """Return Δφ_c, and what channels contribute to each picture's match, less to that with the mean one: [M, K, C]."""
    change_MKCD = _changes(bench, settings)
    image_MD = bench.image_embeddings(bench.image_M).double()
    specific_MD = image_MD - image_MD.mean(0)
    importance_MKC = torch.einsum("mkcd,md->mkc", change_MKCD, specific_MD)
    return {"change_MKCD": change_MKCD.cpu().numpy(), "importance_MKC": importance_MKC.cpu().numpy()}


@torch.no_grad()
def _association(bench: Bench, _settings: RecoverySettings) -> dict[str, np.ndarray]:
    """Return of every layer Δθ of each picture, and its response to all pictures of the data set."""
    pixel_M3HW = bench.pixels(bench.image_M)
    layers = find_layers(bench.model, pixel_M3HW[0])
    effects: list[list[np.ndarray]] = [[] for _ in layers]
    for pixel_3HW in pixel_M3HW:
        for own, effect_FD in zip(effects, map_effects(bench.model, pixel_3HW, layers), strict=True):
            own.append(effect_FD.cpu().numpy())
    arrays = {"layers": np.array([layer.name for layer in layers])}
    for number, (layer, own) in enumerate(zip(layers, effects, strict=True)):
        arrays[f"effect_{number}"] = np.stack(own)
        arrays[f"response_{number}"] = _responses(bench, layer.name, layer.axis)
    return arrays


def _responses(bench: Bench, name: str, axis: int) -> np.ndarray:
    """Return the mean over places of every map's response to every picture of the data set, [Q, F]."""
    net, _ = network_of(bench.model)
    means: list[np.ndarray] = []

    def note(_module: Any, _inputs: Any, maps: torch.Tensor) -> None:
        means.append(maps.movedim(axis, 1).flatten(2).mean(2).cpu().numpy())

    handle = module_of(net, name, bench.model).register_forward_hook(note)
    try:
        every_Q = np.arange(len(bench.store.image_id_M))
        for part in np.split(every_Q, range(_SEGMENTS, len(every_Q), _SEGMENTS)):
            bench.model.encode_image(bench.pixels(part))
    finally:
        handle.remove()
    return np.concatenate(means)


# ---- against the truth


def scores_of(found: Results, opened: Opened, seed: int) -> dict[str, Found]:
    """Return the score of every quantity for one model, by its key.

    Args:
        found: of the models of the same recording.
        opened: the model, its trial named ARM-SEED.
        seed: of the draws of pictures.
    Raises:
        InputError: a chunk is damaged, or the network is dead.
    """
    arm = opened.trial.name.rpartition("-")[0]
    store = opened.store_of(opened.load(), has_pictures=False)
    truth = store.manifest.truth
    maps, channels, association = (found.read(f"{part}.{arm}") for part in PARTS)
    map_of = dict(zip(maps["image_id_M"].tolist(), maps["map_MHW"], strict=True))
    auc_M, nss_M = planted.object_scores(map_of, masks_of(truth, list(map_of), maps["map_MHW"].shape[1]))
    projection = projections(truth, store.manifest.channels)
    importance_MKC = channels["importance_MKC"]
    whole_MC, before_MC, early_MC, late_MC = importance_MKC.transpose(1, 0, 2)
    before_M = before_MC.sum(axis=1)
    low_QL = low_level(truth, store.image_id_M.tolist())
    layers = [
        LayerEffects(
            name=name,
            effect_MFD=association[f"effect_{number}"].astype(np.float64),
            selectivity_F=planted.class_selectivity(
                association[f"response_{number}"].astype(np.float64), store.label_M, low_QL
            ),
        )
        for number, name in enumerate(association["layers"].tolist())
    ]
    contrast_C = sized(projection["temporal"]) - sized(projection["occipital"])
    in_time, on_scalp = planted.association_scores(
        channels["change_MKCD"][:, _OF_ASSOCIATION], layers, contrast_C, seed
    )
    return {
        "saliency/s-auc": planted.mean_score(auc_M, seed),
        "saliency/nss": planted.mean_score(nss_M, seed),
        "channels/all": planted.channel_score(whole_MC, projection["all"], seed),
        "channels/early": planted.channel_score(early_MC, projection["occipital"], seed),
        "channels/late": planted.channel_score(late_MC, projection["temporal"], seed),
        "intervals/early": planted.interval_score(early_MC.sum(axis=1), before_M, seed),
        "intervals/late": planted.interval_score(late_MC.sum(axis=1), before_M, seed),
        "association/time": in_time,
        "association/scalp": on_scalp,
    }
