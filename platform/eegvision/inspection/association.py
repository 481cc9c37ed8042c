"""Which feature maps of a trained model go with which channels, and when: chunks of pictures, then what is left.

    RUN/association/TRIAL.SIDE.HASH/layers.csv  intervals.csv  strongest.csv  visuals.csv  visuals/  figures/
    RUN/activation/TRIAL.SIDE.HASH/           chunks of the pictures that maximise the strongest maps

Axes: U pictures of the side, K stretches of time (the whole segment, then intervals), C channels, L layers, F maps of a
layer, G maps of all layers, D embedding, P parts of the pictures, N links.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eegvision import cluster, fanout, runs
from eegvision.analyses.activation import Ascent, Visualisation, maximise
from eegvision.analyses.association import (
    Association,
    Layer,
    Link,
    association,
    find_layers,
    mean_error,
    pooled,
    strongest,
)
from eegvision.analyses.channels import Noise, channel_changes, takes_excerpt
from eegvision.fanout import Chunk, Results
from eegvision.inspection.channel_settings import ChannelSettings
from eegvision.inspection.channels import plan_of
from eegvision.inspection.feature_settings import AssociationSettings
from eegvision.inspection.opened import Bench, Opened, log_run, open_run, require_both_sides
from eegvision.report.association_figures import LayerRow, layers_figure, strongest_figure
from eegvision.vocab import InputError, SplitName

Say = Callable[[str], None]
Arrays = dict[str, np.ndarray]

_LAYER_ROWS = 8  # of a figure; a page holds no more
_LINKS = 100  # listed of each stretch of time
_DRAWN = 12  # links
_NAMED = 3  # channels of a layer in the printed table
# Parts of the pictures are a matter of the results' size alone, so that workers and their number change nothing.
_FEWEST, _MOST, _ALL_BYTES = 32, 256, 2 << 30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is computed of every picture: all that decides the contents of chunks, beside model and data."""

    layers: tuple[Layer, ...]
    noise: Noise
    intervals_s: tuple[tuple[float, float], ...]
    samples: tuple[tuple[int, int], ...]
    pictures: tuple[int, ...]
    """Rows in the store, sorted."""

    @property
    def stretches(self) -> tuple[str, ...]:
        """Names of the K stretches of time."""
        return ("all", *(f"{1000 * low:g} to {1000 * high:g} ms" for low, high in self.intervals_s))

    def chunks(self, n_chans: int) -> list[Chunk]:
        """Return the pictures in parts of about equal size."""
        n_maps = sum(layer.n_maps for layer in self.layers)
        n_parts = min(_MOST, max(_FEWEST, _ALL_BYTES // (8 * len(self.stretches) * n_chans * n_maps)))
        parts = np.array_split(np.array(self.pictures), min(n_parts, len(self.pictures)))
        return [Chunk(key=f"{number:04d}", item=part.tolist(), size=len(part)) for number, part in enumerate(parts)]


@dataclass(frozen=True, kw_only=True)
class _Maps:
    """Feature maps to visualise, by number of layer and of map, and how."""

    layers: tuple[Layer, ...]
    chosen: tuple[tuple[int, int], ...]
    steps: int
    seed: int


def run_association(
    name: str,
    *,
    trial: int | None,
    side: SplitName,
    settings: AssociationSettings,
    again: str | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    say: Say,
) -> Path:
    """Associate channels and feature maps of a trial of the run `name` (the best one, if no number is given).

    Leaves tables, figures and visualisations in the folder that is returned, and an MLflow run. What was computed
    before is not computed again. Every picture is computed by itself and sums are taken in the order of pictures, in
    parts of a number that only the sizes of the model and the data decide: workers, their number and what was lost on
    the way change nothing (other machines, or other numbers of threads, rounding).

    Args:
        again: why the test set is opened although another model of the run was scored on it.
        cpus, gpus: of each worker; by default a GPU where the cluster has any.
    Raises:
        InputError: there is no such run or trial, its data have changed, it has no image network from pixels; or a
            layer or interval does not fit.
    """
    cluster.enter(say)
    purpose = f"association of {'the best trial' if trial is None else f'trial {trial}'} with feature maps"
    opened = open_run(name, trial=trial, side=side, purpose=purpose, again=again, say=say)
    _require_pixels(opened)
    bench = Bench(opened)
    plan, notes = plan_for(bench, settings)
    channels = bench.store.manifest.channels
    work = {"say": say, "cpus": cpus, "gpus": float(cluster.size()[1] > 0) if gpus is None else gpus}
    say(
        f"{name}, trial {opened.number}: {sum(layer.n_maps for layer in plan.layers):,} maps of {len(plan.layers)} "
        f"layers x {len(channels)} channels x {len(plan.stretches)} stretches of time, {len(plan.pictures)} {side} "
        f"pictures, {settings.draws} draws"
    )
    for note in notes:
        say(f"note: {note}")
    folder = opened.folder("association", plan)
    found = fanout.compute(
        partial(_prepare, opened, plan), plan.chunks(len(channels)), folder,
        identity=opened.identity("association", plan), unit="picture", **work,
    )  # fmt: skip
    whole = pooled(_parts(found, plan.layers))
    visuals = _visualised(opened, _maps_of(whole, settings), work)
    links = _links(found, whole, channels)
    _write_tables(folder, plan, channels, whole, links, visuals, _encoded(bench, plan))
    _draw(folder, plan, bench, whole, links, visuals)
    text = table(whole, plan, channels)
    say(f"\n{text}\n")
    metrics = _metrics(whole, plan)
    summary = opened.about(settings) | {"notes": notes, "found": metrics}
    runs.write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    log_run(opened, "association", folder, settings=settings, metrics=metrics, note=f"```\n{text}\n```", say=say)
    return folder


def _require_pixels(opened: Opened) -> None:
    require_both_sides(opened)
    encoder = opened.config.image.encoder
    if encoder in ("file", "random-codebook"):
        raise InputError(
            f"trial {opened.number} of {opened.run.name!r} was trained with image.encoder {encoder!r}, whose features "
            "come from no network, so there are no feature maps to look at; choose a trial with another image encoder"
        )


# ---- what is to be done


def plan_for(bench: Bench, settings: AssociationSettings) -> tuple[Plan, list[str]]:
    """Return what is to be computed, and what had to be left out.

    Raises:
        InputError: the model has no such layer, or an interval leaves the segments.
    """
    of_channels = ChannelSettings(
        draws=settings.draws, cutoff_hz=settings.cutoff_hz, intervals_s=settings.intervals_s, views=False,
        seed=settings.seed,
    )  # fmt: skip
    times, notes = plan_of(of_channels, bench.store.manifest)
    image_U = bench.image_M
    if settings.pictures is not None and settings.pictures < len(image_U):
        drawn_U = np.random.default_rng(settings.seed).permutation(len(image_U))[: settings.pictures]
        image_U = image_U[np.sort(drawn_U)]
    return Plan(
        layers=find_layers(bench.model, bench.pixels(image_U[:1])[0], settings.layers),
        noise=times.noise,
        intervals_s=times.intervals_s,
        samples=times.samples,
        pictures=tuple(image_U.tolist()),
    ), notes


def _maps_of(whole: Association, settings: AssociationSettings) -> _Maps:
    """Return the maps of each layer that are most associated with any channel, the first ones of equals."""
    chosen = [
        (number, feature)
        for number, map_KCF in enumerate(whole.map_KCF)
        for feature in np.argsort(-map_KCF[0].max(axis=0), kind="stable")[: settings.visuals].tolist()
    ]
    return _Maps(layers=whole.layers, chosen=tuple(chosen), steps=settings.steps, seed=settings.seed)


# ---- in a worker


def _prepare(opened: Opened, plan: Plan) -> Callable[[Sequence[int]], Arrays]:
    return partial(_associate, Bench(opened), plan)


def _associate(bench: Bench, plan: Plan, images: Sequence[int]) -> Arrays:
    """Return what is kept of some pictures: the layers of each, and the maps of all of them together."""
    whole = pooled(
        association(bench.model, bench.pixels(np.array([image]))[0], _changes(bench, plan, image), plan.layers)
        for image in images
    )
    return {
        "n_pairs_U": whole.n_pairs_U,
        "layer_UKCL": whole.layer_UKCL,
        "map_KCG": np.concatenate(whole.map_KCF, axis=2),
    }


def _changes(bench: Bench, plan: Plan, image: int) -> torch.Tensor:
    """Return Δφ_c of the segments of one picture, averaged over draws, [B, K, C, D]; by themselves, so that which
    pictures share a chunk does not matter."""
    row_B = bench.rows_of(image)
    eeg_BCT, subject_B = bench.eeg(row_B)
    ids, channels = bench.store.segment_id_N[row_B].tolist(), bench.store.manifest.channels
    changes = [
        channel_changes(bench.model, eeg_BCT, ids, channels, plan.noise, samples=samples, subject_B=subject_B)
        for samples in (None, *plan.samples)
    ]
    return torch.stack([change.change_BRCD.mean(1) for change in changes], dim=1)


def _encoded(bench: Bench, plan: Plan) -> list[str]:
    """Return what the encoder was given of each stretch of time, as `channels.ChannelChanges` says it."""
    eeg_BCT, subject_B = bench.eeg(bench.rows_of(plan.pictures[0])[:1])
    takes = [takes_excerpt(bench.model, eeg_BCT, samples, subject_B) for samples in plan.samples]
    return ["segment", *("excerpt" if one else "noise outside" for one in takes)]


def _prepare_ascent(opened: Opened, maps: _Maps) -> Callable[[int], Arrays]:
    model = opened.load().to("cuda" if torch.cuda.is_available() else "cpu")

    def work(place: int) -> Arrays:
        number, feature = maps.chosen[place]
        found = maximise(model, maps.layers[number], feature, seed=maps.seed, ascent=Ascent(n_steps=maps.steps))
        return {
            "image_3HW": found.image_3HW,
            "activation": np.array(found.activation),
            "random_R": found.random_R,
            "trace_S": found.trace_S,
        }

    return work


# ---- chunks put together


def _parts(found: Results, layers: tuple[Layer, ...]) -> Iterator[Association]:
    stops = np.cumsum([layer.n_maps for layer in layers])[:-1]
    for key in found.keys:
        arrays = found.read(key)
        yield Association(
            layers=layers,
            n_pairs_U=arrays["n_pairs_U"],
            layer_UKCL=arrays["layer_UKCL"],
            map_KCF=tuple(np.split(arrays["map_KCG"], stops, axis=2)),
        )


def _visualised(opened: Opened, maps: _Maps, work: dict[str, Any]) -> dict[tuple[int, int], Visualisation]:
    """Return the picture of each chosen map."""
    if not maps.chosen:
        return {}
    chunks = [
        Chunk(key=f"layer{number:03d}.map{feature:05d}", item=place)
        for place, (number, feature) in enumerate(maps.chosen)
    ]
    folder = opened.folder("activation", maps)
    found = fanout.compute(
        partial(_prepare_ascent, opened, maps), chunks, folder, identity=opened.identity("activation", maps),
        unit="feature map", **work,
    )  # fmt: skip
    visuals = {}
    for chunk, (number, feature) in zip(chunks, maps.chosen, strict=True):
        arrays = found.read(chunk.key)
        visuals[number, feature] = Visualisation(
            layer=maps.layers[number].name,
            feature=feature,
            image_3HW=arrays["image_3HW"],
            activation=float(arrays["activation"]),
            random_R=arrays["random_R"],
            trace_S=arrays["trace_S"],
        )
    return visuals


def _links(found: Results, whole: Association, channels: Sequence[str]) -> list[list[tuple[Link, float]]]:
    """Return the largest associations in each stretch of time, each with its standard error over parts of the pictures.

    What is largest among many is partly so by chance; the error is that of one link chosen beforehand.
    """
    n_stretches = whole.layer_UKCL.shape[1]
    links = [strongest(whole, channels, n=_LINKS, interval=k) for k in range(n_stretches)]
    number_of = {layer.name: number for number, layer in enumerate(whole.layers)}
    counts, values = [], []
    for part in _parts(found, whole.layers):  # again, one at a time: errors of all maps would take as much as all parts
        counts.append(part.n_pairs_U.sum())
        values.append(
            [
                [part.map_KCF[number_of[link.layer]][k, channels.index(link.channel), link.feature] for link in own]
                for k, own in enumerate(links)
            ]
        )
    _, error_KN = mean_error(np.array(values), np.array(counts))
    return [list(zip(own, error_N.tolist(), strict=True)) for own, error_N in zip(links, error_KN, strict=True)]


# ---- what is left


def _write_tables(
    folder: Path,
    plan: Plan,
    channels: Sequence[str],
    whole: Association,
    links: Sequence[Sequence[tuple[Link, float]]],
    visuals: dict[tuple[int, int], Visualisation],
    encoded: Sequence[str],
) -> None:
    import pandas as pd

    value_KCL, error_KCL = whole.by_channel()
    mean_KL, mean_error_KL = whole.by_interval()
    stretches, names = plan.stretches, [layer.name for layer in plan.layers]
    places = [(number, k) for number in range(len(names)) for k in range(len(stretches))]
    tables = {
        "layers": [
            {
                "layer": names[number], "stretch": stretches[k], "channel": channel,
                "association": value_KCL[k, c, number], "standard_error": error_KCL[k, c, number],
            }
            for number, k in places
            for c, channel in enumerate(channels)
        ],
        "intervals": [
            {
                "layer": names[number], "n_maps": plan.layers[number].n_maps, "stretch": stretches[k],
                "association": mean_KL[k, number], "standard_error": mean_error_KL[k, number], "encoded": encoded[k],
            }
            for number, k in places
        ],
        "strongest": [
            {
                "stretch": stretches[k], "rank": rank, "layer": link.layer, "map": link.feature,
                "channel": link.channel, "association": link.value, "standard_error": error,
            }
            for k, own in enumerate(links)
            for rank, (link, error) in enumerate(own, start=1)
        ],
        "visuals": [
            {
                "layer": found.layer, "map": feature,
                "channel": channels[int(whole.map_KCF[number][0, :, feature].argmax())],
                "association": whole.map_KCF[number][0, :, feature].max(), "activation": found.activation,
                "random_mean": found.random_R.mean(), "standardised": found.standardised,
                "file": f"visuals/{_file(found)}",
            }
            for (number, feature), found in visuals.items()
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        if rows:
            pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def _draw(
    folder: Path,
    plan: Plan,
    bench: Bench,
    whole: Association,
    links: Sequence[Sequence[tuple[Link, float]]],
    visuals: dict[tuple[int, int], Visualisation],
) -> None:
    montage = bench.store.manifest.montage
    value_KCL, _ = whole.by_channel()
    mean_KL, error_KL = whole.by_interval()
    (folder / "visuals").mkdir(exist_ok=True)
    pictures: dict[int, list[tuple[int, np.ndarray]]] = {number: [] for number in range(len(plan.layers))}
    for (number, feature), found in visuals.items():
        picture_HW3 = np.round(255 * found.image_3HW.transpose(1, 2, 0)).astype(np.uint8)
        pictures[number].append((feature, picture_HW3))
        Image.fromarray(picture_HW3).save(folder / "visuals" / _file(found))
    # Of a segment as a whole nothing is said beside its intervals, unless there are none.
    first = 1 if plan.intervals_s else 0
    rows = [
        LayerRow(
            layer=layer.name,
            n_maps=layer.n_maps,
            visuals=tuple(pictures[number]),
            value_C=value_KCL[0, :, number],
            interval_names=plan.stretches[first:],
            interval_K=mean_KL[first:, number],
            interval_error_K=error_KL[first:, number] if len(plan.pictures) > 1 else None,
        )
        for number, layer in enumerate(plan.layers)
    ]
    pages = [rows[start : start + _LAYER_ROWS] for start in range(0, len(rows), _LAYER_ROWS)]
    for number, page in enumerate(pages, start=1):
        name = "layers" if len(pages) == 1 else f"layers-{number}"
        layers_figure(page, montage.positions_m, folder / "figures" / name, channels=montage.channels)
    strongest_figure([link for link, _ in links[0][:_DRAWN]], folder / "figures" / "strongest")


def _file(found: Visualisation) -> str:
    return f"{found.layer}-{found.feature}.png"


def _metrics(whole: Association, plan: Plan) -> dict[str, float]:
    """Return what each stretch of time contributes to each layer, for MLflow."""
    mean_KL, _ = whole.by_interval()
    return {
        f"association/{layer.name}/{stretch.replace(' ', '_')}": float(mean_KL[k, number])
        for number, layer in enumerate(plan.layers)
        for k, stretch in enumerate(plan.stretches)
    }


def table(whole: Association, plan: Plan, channels: Sequence[str]) -> str:
    """Return the layers as text: their strongest channels, and what each stretch of time contributes."""
    value_KCL, error_KCL = whole.by_channel()
    mean_KL, mean_error_KL = whole.by_interval()
    factor, unit = _scale(float(np.abs(value_KCL).max()))
    lines = [["layer", "maps", "strongest channels", *(name.replace(" to ", "-") for name in plan.stretches)]]
    for number, layer in enumerate(plan.layers):
        order = np.argsort(-value_KCL[0, :, number], kind="stable")[:_NAMED].tolist()
        named = [f"{channels[c]} {_with_error(value_KCL, error_KCL, (0, c, number), factor)}" for c in order]
        spent = [_with_error(mean_KL, mean_error_KL, (k, number), factor) for k in range(len(plan.stretches))]
        lines.append([layer.name, str(layer.n_maps), ", ".join(named), *spent])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (0, 2)
    shown = [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(
        [
            f"associations {unit}, mean over maps and {whole.n_pairs_U.sum()} pairs of {len(whole.n_pairs_U)} pictures "
            "± standard error over pictures",
            "right: mean over channels too, of the whole segment and of each interval alone",
            "",
            shown[0],
            "-" * max(map(len, shown)),
            *shown[1:],
        ]
    )


def _scale(largest: float) -> tuple[float, str]:
    """Return the power of 1000 that brings values to readable numbers, and how to say so."""
    power = 0 if largest == 0 else max(0, math.ceil(-math.log10(largest) / 3))
    return 10.0 ** (3 * power), "in units of F" if power == 0 else f"in units of F x 10^-{3 * power}"


def _with_error(value: np.ndarray, error: np.ndarray, place: tuple[int, ...], factor: float) -> str:
    """Return a value with its error to one digit, or to three digits where there is none."""
    shown, spread = factor * float(value[place]), factor * float(error[place])
    if not spread > 0:
        return f"{shown:.3g}"
    digits = max(0, -math.floor(math.log10(spread)))
    return f"{shown:.{digits}f}±{spread:.{digits}f}"
