"""Saliency of pictures to a trained model: which maps, a picture per chunk over the cluster, what is left.

    RUN/saliency/TRIAL.SIDE.HASH/table_iv.csv .tex .txt  scores.csv  summary.json  figures/  maps/

Axes: N segments of a picture, U subjects, S scales, H W pixels, C channels, D embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from eegvision import cluster, fanout
from eegvision.analyses.association import network_of
from eegvision.analyses.channels import Noise, channel_importance
from eegvision.analyses.suppression import SCALES_PX, Arithmetic, ClassLikelihood, Fast, Saliency, Score, saliency_map
from eegvision.evaluate.probes import Probe, fit_probe
from eegvision.fanout import Chunk
from eegvision.inspection import saliency_tables
from eegvision.inspection.opened import Bench, Opened, log_run, open_run, require_both_sides
from eegvision.inspection.saliency_settings import MapSettings, SaliencySettings
from eegvision.stream import Store
from eegvision.vocab import InputError, SplitName

Say = Callable[[str], None]

_PALAZZO_PX = 224
_DRAWS = 4  # of the noise behind the scalp maps of triplets
_SEGMENTS = 64  # whose channels are replaced at a time


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides what chunks hold, beside model and data: how maps are made, of which pictures."""

    maps: MapSettings
    images: tuple[str, ...]
    triplets: tuple[str, ...]


def run_saliency(
    name: str,
    *,
    trial: int | None,
    side: SplitName,
    settings: SaliencySettings,
    again: str | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    say: Say,
) -> Path:
    """Map the pictures of a side for a trial of the run `name` (the best one, if no number is given).

    The map of a picture is that of its segments' mean embedding, every subject counting alike: F is linear in it, so
    what a square takes away is the mean of what it takes from each segment, before maps are brought to [0, 1]. Leaves
    maps, Table IV where gaze was recorded, figures and a summary in the folder that is returned, and an MLflow run.
    What was computed before is not computed again.

    Args:
        again: why the test set is opened although another model of the run was scored on it.
        cpus, gpus: of each worker; by default a GPU where the cluster has any.
    Raises:
        InputError: there is no such run, trial or picture, its data have changed, the model knows one side alone or
            runs no network from pixels; a fixation lies outside its picture; or a map of another detector is missing
            or does not fit its picture.
    """
    cluster.enter(say)
    purpose = "saliency of the best trial" if trial is None else f"saliency of trial {trial}"
    opened = open_run(name, trial=trial, side=side, purpose=purpose, again=again, say=say)
    require_both_sides(opened)
    model = opened.load()
    _, size_px = network_of(model)
    store = opened.store_of(model, has_pictures=False)
    image_M = chosen(store, side, settings)
    shown_M = spread_over_classes(store, image_M, settings.triplets, settings.seed)
    scales_px = scales_of(settings.scales_px, size_px)
    plan = Plan(
        maps=replace(settings.maps, scales_px=scales_px),
        images=tuple(store.image_id_M[image_M].tolist()),
        triplets=tuple(store.image_id_M[shown_M].tolist()),
    )
    folder = opened.folder("saliency", plan)
    scene = saliency_tables.Scene(
        store=store,
        image_M=image_M,
        triplet_M=shown_M,
        size_px=size_px,
        scales_px=scales_px,
        dataset=opened.config.data.dataset,
    )
    # Before hours of maps are made: whatever they shall be held against must be there and fit.
    evidence = saliency_tables.Evidence(
        fixations=scene.fixations(),
        detectors=saliency_tables.checked_detectors(settings.detectors, scene),
        missing=why_no_classes(store, image_M) if settings.baseline else None,
    )
    say(
        f"{name}, trial {opened.number}: saliency of {len(image_M)} pictures of the {side} side, {size_px} px, engine "
        f"{settings.engine}, squares of {', '.join(map(str, scales_px))} px"
    )
    if evidence.missing:
        say(f"note: {evidence.missing}")
    held_gpus = float(cluster.size()[1] > 0) if gpus is None else gpus
    has_classes = settings.baseline and not evidence.missing
    probe = _probe_of(opened, cpus, held_gpus, say) if has_classes and not _is_finished(folder) else None
    found = fanout.compute(
        partial(_prepare, opened, plan.maps, probe),
        _chunks(image_M, shown_M),
        folder,
        identity=opened.identity("saliency", plan),
        unit="picture",
        say=say,
        cpus=cpus,
        gpus=held_gpus,
    )
    report = saliency_tables.write(folder, found, scene, evidence, settings, opened)
    say(f"\n{report.text}\n")
    note = f"```\n{report.text}\n```"
    log_run(opened, "saliency", folder, settings=settings, metrics=report.metrics, note=note, say=say)
    return folder


# ---- what is to be done


def scales_of(scales_px: tuple[int, ...] | None, size_px: int) -> tuple[int, ...]:
    """Return the scales asked for, or Palazzo's, which in pictures below 224 px keep their share of the side."""
    if scales_px is not None:
        return scales_px
    share = min(1.0, size_px / _PALAZZO_PX)
    return tuple(sorted({2 * round((scale_px * share - 1) / 2) + 1 for scale_px in SCALES_PX}))


def chosen(store: Store, side: SplitName, settings: SaliencySettings) -> np.ndarray:
    """Return the rows of the pictures that get maps, sorted.

    Raises:
        InputError: a picture that is named is not shown on the side.
    """
    image_M = np.unique(store.image_N[store.split.rows[side]])
    if not settings.images:
        wanted = len(image_M) if settings.pictures is None else settings.pictures
        return spread_over_classes(store, image_M, wanted, settings.seed)
    row_of = {store.image_id_M[image]: image for image in image_M.tolist()}
    for image_id in settings.images:
        if image_id not in row_of:
            near = difflib.get_close_matches(image_id, row_of, n=3, cutoff=0)
            raise InputError(
                f"picture {image_id!r} is not shown on the {side} side of {store.manifest.name!r}, which has "
                f"{len(row_of)}, such as {', '.join(near)}; name one of those, or choose the side it is on"
            )
    return np.unique([row_of[image_id] for image_id in settings.images])


def spread_over_classes(store: Store, image_M: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return n pictures (all, if there are fewer), every class as often as another, drawn at random; sorted."""
    if n >= len(image_M):
        return image_M
    shuffled_M = np.random.default_rng([seed, len(image_M)]).permutation(image_M)
    label_M = store.label_M[shuffled_M]
    # The first picture of every class, then the second of every class, ...
    turn_M = np.empty(len(shuffled_M), dtype=np.int64)
    for label in np.unique(label_M):
        turn_M[label_M == label] = np.arange(np.count_nonzero(label_M == label))
    return np.sort(shuffled_M[np.argsort(turn_M, kind="stable")[:n]])


def _chunks(image_M: np.ndarray, triplet_M: np.ndarray) -> list[Chunk]:
    maps = [Chunk(key=f"map-{image:06d}", item=("map", image)) for image in image_M.tolist()]
    return maps + [Chunk(key=f"scalp-{image:06d}", item=("scalp", image), size=0) for image in triplet_M.tolist()]


def why_no_classes(store: Store, image_M: np.ndarray) -> str | None:
    """Return why pictures cannot have maps of the likelihood of their class; None where they can."""
    known = {
        side: np.setdiff1d(store.label_M[store.image_N[store.split.rows[side]]], [-1]) for side in ("train", "val")
    }
    why = None
    if (store.label_M[image_M] < 0).any():
        why = "the data set does not say the class of every picture"
    elif len(unseen := np.setdiff1d(store.label_M[image_M], known["train"])):
        why = f"no training picture shows {store.manifest.classes[int(unseen[0])]!r}"
    elif len(known["train"]) < 2:
        why = "all training pictures show one class"
    elif not np.isin(known["val"], known["train"]).any():
        why = "no validation picture shows a class of the training pictures"
    return why and f"no maps of the likelihood of the class ({saliency_tables.CLASSIFIER}): {why}"


def _is_finished(folder: Path) -> bool:
    return (folder / "manifest.jsonl").exists() and not fanout.results(folder).missing


def _probe_of(opened: Opened, cpus: float, gpus: float, say: Say) -> Probe:
    """Return a probe of the embeddings of pictures, fitted in one process of the cluster, if there is one."""
    say("fitting a classifier to the pictures' embeddings, for the maps of the class ...")
    if not cluster.is_connected():
        return _fit_probe(opened)
    (probe,) = fanout.spread(_fit_probe, [opened], cpus=cpus, gpus=gpus)
    return probe


# ---- in a worker


def _fit_probe(opened: Opened) -> Probe:
    bench = Bench(opened)
    parts = {}
    for side in ("train", "val"):
        image_M = np.unique(bench.store.image_N[bench.store.split.rows[side]])
        image_M = image_M[bench.store.label_M[image_M] >= 0]
        parts[side] = bench.image_embeddings(image_M).cpu().numpy(), bench.store.label_M[image_M]
    known = np.isin(parts["val"][1], parts["train"][1])
    return fit_probe(*parts["train"], parts["val"][0][known], parts["val"][1][known])


def _prepare(
    opened: Opened, maps: MapSettings, probe: Probe | None
) -> Callable[[tuple[Literal["map", "scalp"], int]], dict[str, np.ndarray]]:
    bench = Bench(opened)

    def work(item: tuple[Literal["map", "scalp"], int]) -> dict[str, np.ndarray]:
        kind, image = item
        return _scalp(bench, maps, image) if kind == "scalp" else _maps(bench, maps, probe, image)

    return work


@torch.no_grad()
def _maps(bench: Bench, settings: MapSettings, probe: Probe | None, image: int) -> dict[str, np.ndarray]:
    """Return the maps of one picture: of its EEG, and of its class where a probe tells classes."""
    row_N = bench.rows_of(image)
    phi_ND = torch.cat([bench.model.encode_eeg(*bench.eeg(part)) for part in _parts(row_N)])
    subjects_U, subject_N = np.unique(bench.store.subject_N[row_N], return_inverse=True)
    mean_D = torch.stack([phi_ND[torch.from_numpy(subject_N == u)].mean(0) for u in range(len(subjects_U))]).mean(0)
    scores: dict[str, Score] = {"eeg": mean_D[None]}
    if probe is not None:
        scores["class"] = ClassLikelihood.of_probe(probe, bench.store.label_M[image])
    pixel_3HW = bench.pixels(np.array([image]))[0]
    found = saliency_map(
        bench.model,
        list(scores.values()),
        pixel_3HW,
        scales_px=scales_of(settings.scales_px, pixel_3HW.shape[1]),
        engine="exact" if settings.engine == "exact" else Fast(fidelity=settings.fidelity),
        arithmetic=Arithmetic(dtype=settings.dtype),
        fill=settings.fill,
        normalise_scales=settings.normalise_scales,
        seed=settings.seed,
    )
    arrays = {
        "n_segments": np.array(len(row_N)),
        "n_subjects": np.array(len(subjects_U)),
        "n_evaluations": np.array(found.n_evaluations),
    }
    for n, what in enumerate(scores):
        arrays |= {f"{name}_{what}": value for name, value in _kept(found, n).items()}
    return arrays


def _kept(found: Saliency, n: int) -> dict[str, np.ndarray]:
    kept = {"map": found.map_NHW[n], "drop": found.drop_NSHW[n], "score": found.score_N[n]}
    if (agreement := found.agreement) is not None:
        of_map = (agreement.r_N[n], agreement.low_N[n], agreement.high_N[n], agreement.rmse_N[n], agreement.n)
        kept["agreement"] = np.array(of_map, dtype=np.float64)
    return kept


def _scalp(bench: Bench, settings: MapSettings, image: int) -> dict[str, np.ndarray]:
    """Return the importance of every channel for the segments that one picture evoked."""
    store, row_N = bench.store, bench.rows_of(image)
    noise = Noise(sfreq_hz=store.manifest.sfreq_hz, n_draws=_DRAWS, seed=settings.seed)
    image_1D = bench.image_embeddings(np.array([image]))
    found = []
    for part in _parts(row_N):
        eeg_BCT, subject_B = bench.eeg(part)
        found.append(
            channel_importance(
                bench.model,
                eeg_BCT,
                image_1D.expand(len(part), -1),
                store.segment_id_N[part].tolist(),
                store.manifest.channels,
                noise,
                subject_B=subject_B,
            ).importance_NC
        )
    return {"importance": np.concatenate(found), "subject": store.subject_N[row_N].astype(np.str_)}


def _parts(row_N: np.ndarray) -> Sequence[np.ndarray]:
    return np.split(row_N, range(_SEGMENTS, len(row_N), _SEGMENTS))
