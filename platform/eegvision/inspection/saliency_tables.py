"""What saliency leaves behind: maps, Table IV against gaze, figures, and a summary to read.

Axes: M pictures, S scales, H W pixels of the model's pictures, C channels, N fixations.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eegvision import runs, stream
from eegvision.analyses.semantic import RetinotopicTriplet, retinotopic_triplet
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.evaluate import saliency as scoring
from eegvision.evaluate.saliency import METRICS, SaliencyScores
from eegvision.fanout import Results
from eegvision.ingest import pictures, shards
from eegvision.inspection.opened import Opened
from eegvision.inspection.saliency_settings import SaliencySettings
from eegvision.report import saliency_figures
from eegvision.report.saliency_figures import MapRow
from eegvision.stream import Store
from eegvision.vocab import InputError

NEURAL, CLASSIFIER, CENTRE, HUMAN, NEXT = "neural-driven", "classifier-driven", "centre", "human", "one viewer"
_OF = {NEURAL: "eeg", CLASSIFIER: "class"}  # how chunks call them
_MEANS = {
    CENTRE: "centre: a Gaussian about the centre of every picture, whatever it shows (SD a quarter of the side).",
    NEXT: "one viewer: gaze of all viewers but one, scored on that one, mean over viewers.",
}
_CENTRE_SD = 0.25  # of a map that looks at the centre whatever is there, as a share of the side
_ASPECT = 0.02  # by which the shapes of a picture and a detector's map may differ
_TINT = 8  # levels between the colours of a pixel that a JPEG file of grey ones may leave
_EXACT_R = 1 - 1e-6  # agreement of maps that have every pixel, but for rounding
_SUFFIXES = (".npy", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is shown at the end, and what MLflow gets."""

    text: str
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What maps are held against, checked before any is made, and what they cannot be held against.

    `fixations` are those of `Scene.fixations`, `detectors` the folders of other detectors' maps by name; `missing` says
    why there are no maps of the class, None where there are or where nobody asked.
    """

    fixations: Mapping[str, Mapping[str, np.ndarray]]
    detectors: Mapping[str, Path]
    missing: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The pictures that have maps at some scales (rows of the store), `size_px` wide as the model sees them.

    `triplet_M` are those that have a scalp map too.
    """

    store: Store
    image_M: np.ndarray
    triplet_M: np.ndarray
    size_px: int
    scales_px: tuple[int, ...]
    dataset: str

    def name(self, image: int) -> str:
        """Return a picture's id."""
        return str(self.store.image_id_M[image])

    def class_name(self, image: int) -> str:
        """Return the name of a picture's class, its id where it has none."""
        label = int(self.store.label_M[image])
        return self.store.manifest.classes[label] if label >= 0 else self.name(image)

    def colours(self, image: int) -> np.ndarray:
        """Return a picture as the model sees it, uint8 [H, W, 3]."""
        view_3HW = stream.central_views(self._root, self._stored, np.array([image]), self.size_px)[0].numpy()
        share_HW3 = np.moveaxis(view_3HW, 0, -1) * IMAGENET_STD + IMAGENET_MEAN
        return np.clip(share_HW3 * 255 + 0.5, 0, 255).astype(np.uint8)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Height and width of every picture as it was shown."""
        table = shards.read_images(self._root, self._stored)
        sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
        return dict(zip(table["image_id"].to_pylist(), sizes, strict=True))

    def fixations(self) -> dict[str, dict[str, np.ndarray]]:
        """Return, for every picture with a map that was looked at, the pixels each viewer fixated, within the crop.

        Raises:
            InputError: a fixation lies outside its picture.
        """
        table = shards.read_gaze(self._root, self._stored)
        if table is None:
            return {}
        mapped = {self.name(image) for image in self.image_M.tolist()}
        places: dict[str, dict[str, list[tuple[float, float]]]] = {}
        rows = (table[name].to_pylist() for name in ("image_id", "viewer", "row_px", "column_px"))
        for image_id, viewer, row, column in zip(*rows, strict=True):
            if image_id in mapped:
                places.setdefault(image_id, {}).setdefault(viewer, []).append((row, column))
        found: dict[str, dict[str, np.ndarray]] = {}
        for image_id, by_viewer in places.items():
            for viewer, place_N2 in by_viewer.items():
                try:
                    pixel_N2 = scoring.in_crop(np.array(place_N2), self.shapes[image_id], self.size_px, stream.RESIZE)
                except InputError as error:
                    raise InputError(f"gaze of {viewer} on picture {image_id!r}: {error}") from error
                if len(pixel_N2):
                    found.setdefault(image_id, {})[viewer] = pixel_N2
        return found

    @cached_property
    def _root(self) -> Any:
        return shards.dataset_root(self.dataset)

    @cached_property
    def _stored(self) -> shards.Manifest:
        return shards.read_manifest(self._root)


# ---- maps of other detectors


def checked_detectors(folder: Path | None, scene: Scene) -> dict[str, Path]:
    """Return the folders of other detectors by name, all of whose maps can be read and fit their pictures.

    Raises:
        InputError: no such folder, no detector in it, one with the name of a row of ours, a picture without a map, or a
            map that cannot be read or has another shape than its picture.
    """
    if folder is None:
        return {}
    found = {path.name: path for path in sorted(folder.glob("[!.]*")) if path.is_dir()}
    if not found:
        raise InputError(
            f"{folder} holds no folder of maps; make one for each detector, named by it, with IMAGE_ID.png"
        )
    if taken := sorted({NEURAL, CLASSIFIER, CENTRE, HUMAN, NEXT} & set(found)):
        raise InputError(f"{folder} has a detector called {taken[0]!r}, which is a row of our own; rename it")
    for path in found.values():
        for image in scene.image_M.tolist():
            detector_map(path, scene, image)
    return found


def detector_map(folder: Path, scene: Scene, image: int) -> np.ndarray:
    """Return a detector's map of a picture, float32 and cut as the model's pictures are.

    Raises:
        InputError: as `checked_detectors`.
    """
    image_id = scene.name(image)
    path = next((path for suffix in _SUFFIXES if (path := folder / f"{image_id}{suffix}").is_file()), None)
    if path is None:
        raise InputError(
            f"{folder} has no map of picture {image_id!r} ({' or '.join(_SUFFIXES)}); detectors are compared on the "
            "same pictures: add it, or name the pictures to score with --images"
        )
    return _cropped(_read_map(path), path, scene.shapes[image_id], scene.size_px)


def _read_map(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        try:
            map_HW = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"the map {path} cannot be read ({error}); save one array with numpy.save") from error
        if not isinstance(map_HW, np.ndarray):
            raise InputError(f"the map {path} holds several arrays; save one array with numpy.save")
    else:
        colour_HW3 = pictures.decode(pictures.read_picture(path), str(path)).astype(np.int16)
        if np.ptp(colour_HW3, axis=2).max() > _TINT:
            raise InputError(f"the map {path} is in colour; save the values themselves, as grey levels or .npy")
        map_HW = colour_HW3.mean(axis=2)
    if map_HW.ndim != 2 or map_HW.size == 0 or map_HW.dtype.kind not in "iuf":
        raise InputError(f"the map {path} is {map_HW.dtype} of shape {map_HW.shape}; expected real numbers [H, W]")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused with what is not finite already
        map_HW = map_HW.astype(np.float32)
    if not np.isfinite(map_HW).all():
        raise InputError(f"the map {path} has values that are not finite; put numbers in their place")
    return map_HW


def _cropped(map_HW: np.ndarray, path: Path, shape: tuple[int, int], size_px: int) -> np.ndarray:
    """Return the part of a map that the model's picture shows: the central square, resized, without its margin."""
    (height, width), edge = map_HW.shape, min(map_HW.shape)
    if abs(height / width * shape[1] / shape[0] - 1) > _ASPECT:
        raise InputError(
            f"the map {path} has {height} x {width} pixels (rows x columns), its picture {shape[0]} x {shape[1]}; "
            "give maps of the whole picture, of its shape, at any resolution"
        )
    left, top = (width - edge) / 2, (height - edge) / 2
    side_px = round(stream.RESIZE * size_px)
    box = (left, top, left + edge, top + edge)
    square_HH = np.asarray(Image.fromarray(map_HW).resize((side_px, side_px), Image.Resampling.BILINEAR, box=box))
    margin = round((side_px - size_px) / 2)
    return square_HH[margin : margin + size_px, margin : margin + size_px]


# ---- putting it together


def write(
    folder: Path,
    found: Results,
    scene: Scene,
    evidence: Evidence,
    settings: SaliencySettings,
    opened: Opened,
) -> Report:
    """Write maps, tables, figures and summary into a folder and return what to show; the same input, the same bytes.

    Raises:
        InputError: a chunk is damaged, or a map of another detector has gone.
    """
    maps, agreement = _gathered(folder, found, scene, evidence.detectors)
    fixations = evidence.fixations
    notes = ([evidence.missing] if evidence.missing else []) + _notes(scene, fixations, agreement, settings)
    scores = _scores(maps, fixations, scene, settings) if len(fixations) > 1 else {}
    summary = _summary(scene, settings, opened, scores, agreement, notes)
    lines = []
    if scores:
        caption = (
            f"{opened.dataset['name']} ({opened.dataset['fingerprint']}), {opened.side} side, "
            f"{opened.config.image.encoder} and {opened.config.eeg.encoder}, engine {settings.engine}."
        )
        table = saliency_figures.table_iv(
            scores, caption=caption, notes=[means for name, means in _MEANS.items() if name in scores]
        )
        runs.write_whole(folder / "table_iv.csv", table.to_csv())
        runs.write_whole(folder / "table_iv.tex", table.to_latex())
        runs.write_whole(folder / "table_iv.txt", table.to_text())
        _write_scores(folder / "scores.csv", scores)
        lines.append(table.to_text())
    runs.write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    _draw(folder, found, scene, maps, fixations, scores, settings)
    lines += [f"note: {note}" for note in notes]
    metrics = {
        f"saliency/{_metric_name(name)}/{metric}": float(score.of(metric).mean())
        for name, score in scores.items()
        for metric in METRICS
    }
    return Report(text="\n".join(lines), metrics=metrics | {f"saliency/{k}": v for k, v in _worst(agreement).items()})


def _metric_name(detector: str) -> str:
    """Return a detector's name with what MLflow does not take in the name of a metric replaced."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", detector)


def _gathered(
    folder: Path, found: Results, scene: Scene, detectors: Mapping[str, Path]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]:
    """Return maps by detector and picture, kept in files of `maps/`, and how our `fast` ones agree with exact ones.

    They are views of these files, so that memory does not grow with pictures and detectors.
    """
    shape = (len(scene.image_M), scene.size_px, scene.size_px)
    files: dict[str, np.ndarray] = {}
    agreement: dict[str, dict[str, np.ndarray]] = {}
    shutil.rmtree(folder / "maps", ignore_errors=True)  # other detectors may have been given before
    (folder / "maps").mkdir()

    def keep(name: str, row: int, map_HW: np.ndarray) -> None:
        if name not in files:
            path = folder / "maps" / f"{name}.npy"
            files[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        files[name][row] = map_HW

    for row, image in enumerate(scene.image_M.tolist()):
        arrays = found.read(f"map-{image:06d}")
        for name, what in _OF.items():
            if f"map_{what}" in arrays:
                keep(name, row, arrays[f"map_{what}"])
            if f"agreement_{what}" in arrays:
                agreement.setdefault(name, {})[scene.name(image)] = arrays[f"agreement_{what}"]
        for name, path in detectors.items():
            keep(name, row, detector_map(path, scene, image))
    ids = "".join(f"{scene.name(image)}\n" for image in scene.image_M.tolist())
    runs.write_whole(folder / "maps" / "pictures.txt", ids)
    of_picture = {
        name: {scene.name(image): file[row] for row, image in enumerate(scene.image_M.tolist())}
        for name, file in files.items()
    }
    return of_picture, agreement


def _notes(
    scene: Scene,
    fixations: Mapping[str, Any],
    agreement: Mapping[str, Mapping[str, np.ndarray]],
    settings: SaliencySettings,
) -> list[str]:
    notes = []
    n_all, n_looked = len(scene.image_M), len(fixations)
    if not fixations:
        notes.append("there is no gaze within the crop of these pictures, so maps are not scored")
    elif n_looked < 2:
        notes.append(f"{n_looked} of {n_all} pictures has gaze within its crop; scores need two, so there are none")
    elif n_looked < n_all:
        notes.append(f"{n_all - n_looked} of {n_all} pictures have no gaze within the crop: they are not scored")
    if n_looked > 1 and (n_few := n_looked - len(_of_several(fixations))):
        notes.append(f"{NEXT}: without the {n_few} pictures at which one viewer alone looked")
    for name, by_image in agreement.items():
        r_M = np.array([values[0] for values in by_image.values()])
        worst = min(by_image, key=lambda image_id: by_image[image_id][0])
        notes.append(
            f"{name}: maps agree with exact ones, r = {np.median(r_M):.4f} (median), least {by_image[worst][0]:.4f} "
            f"[{by_image[worst][1]:.4f}, {by_image[worst][2]:.4f}] at picture {worst!r}, at {by_image[worst][4]:.0f} "
            "random pixels each"
        )
        n_below = sum(values[2] < settings.fidelity for values in by_image.values())
        if settings.engine == "fast" and n_below:
            notes.append(
                f"{name}: {n_below} of {len(by_image)} maps did not reach r = {settings.fidelity:g}, which was asked "
                "for; --engine exact computes every pixel"
            )
    if any(values[0] < _EXACT_R for by_image in agreement.values() for values in by_image.values()):
        notes.append(
            "figure_3_scales: squares that add little to the sum are interpolated from few places; with --engine exact "
            "every pixel is computed"
        )
    return notes


def _scores(
    maps: Mapping[str, Mapping[str, np.ndarray]],
    fixations: Mapping[str, Mapping[str, np.ndarray]],
    scene: Scene,
    settings: SaliencySettings,
) -> dict[str, SaliencyScores]:
    """Return the scores of every detector, of a map that knows the centre alone, and of people."""
    sigma_px, size_px = settings.gaze_sigma * scene.size_px, scene.size_px
    pooled = {name: np.concatenate([*by_viewer.values()]) for name, by_viewer in fixations.items()}
    along = np.exp(-0.5 * ((np.arange(size_px) - (size_px - 1) / 2) / (_CENTRE_SD * size_px)) ** 2)
    everything = {**maps, CENTRE: dict.fromkeys(pooled, np.outer(along, along))}
    scores = {
        name: scoring.score_maps({image_id: by_image[image_id] for image_id in pooled}, pooled, sigma_px)
        for name, by_image in everything.items()
    }
    shape = (size_px, size_px)
    if len(several := _of_several(fixations)) > 1:
        scores[NEXT] = scoring.human_ceiling(several, shape, sigma_px, method="one-viewer-out")
    return scores | {HUMAN: scoring.human_ceiling(fixations, shape, sigma_px)}


def _of_several(fixations: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the gaze on pictures at which more than one viewer looked."""
    return {image_id: by_viewer for image_id, by_viewer in fixations.items() if len(by_viewer) > 1}


def _write_scores(path: Path, scores: Mapping[str, SaliencyScores]) -> None:
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["detector", "image", *METRICS, "n_fixations"])
        for name, score in scores.items():
            for row in score.to_rows():
                values = [f"{row[metric]:.6g}" for metric in METRICS]
                writer.writerow([name, "" if row["image"] is None else row["image"], *values, row["n_fixations"]])
    temporary.rename(path)


def _summary(
    scene: Scene,
    settings: SaliencySettings,
    opened: Opened,
    scores: Mapping[str, SaliencyScores],
    agreement: Mapping[str, Mapping[str, np.ndarray]],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        **opened.about(settings),
        "scales_px": list(scene.scales_px),
        "n_pictures": len(scene.image_M),
        "size_px": scene.size_px,
        "gaze_sigma_px": settings.gaze_sigma * scene.size_px,
        "scores": {
            name: {
                metric: {"mean": float(score.of(metric).mean()), "interval": list(score.interval(metric))}
                for metric in METRICS
            }
            for name, score in scores.items()
        },
        "agreement": _worst(agreement),
        "notes": list(notes),
    }


def _worst(agreement: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    return {
        f"{name}/least_r": float(min(values[0] for values in by_image.values())) for name, by_image in agreement.items()
    }


# ---- figures


def _draw(
    folder: Path,
    found: Results,
    scene: Scene,
    maps: Mapping[str, Mapping[str, np.ndarray]],
    fixations: Mapping[str, Mapping[str, np.ndarray]],
    scores: Mapping[str, SaliencyScores],
    settings: SaliencySettings,
) -> None:
    shutil.rmtree(folder / "figures", ignore_errors=True)  # other pictures may have been shown before
    rng = np.random.default_rng(settings.seed)
    shown_M = np.sort(rng.permutation(scene.image_M)[: settings.shown])
    sigma_px, shape = settings.gaze_sigma * scene.size_px, (scene.size_px, scene.size_px)
    rows = []
    for image in shown_M.tolist():
        image_id = scene.name(image)
        looked = fixations.get(image_id)
        density_HW = scoring.fixation_density(np.concatenate([*looked.values()]), shape, sigma_px) if looked else None
        known = {
            name: float(score.of("nss")[score.image_ids.index(image_id)])
            for name, score in scores.items()
            if name in maps and image_id in score.image_ids
        }
        own = {name: by_image[image_id] for name, by_image in maps.items()}
        order = [*(name for name in own if name not in _OF), *(name for name in (CLASSIFIER, NEURAL) if name in own)]
        rows.append(
            MapRow(
                image_id=image_id,
                class_name=scene.class_name(image),
                picture_HW3=scene.colours(image),
                gaze_HW=density_HW,
                maps={name: own[name] for name in order},
                scores=known,
            )
        )
    title = "Where removing a part of the picture lowers its match" + (", and where people looked" if scores else "")
    saliency_figures.maps_figure(rows, folder / "figures" / "figure_5_maps", title=title)
    first = int(shown_M[0])
    drop_SHW = found.read(f"map-{first:06d}")["drop_eeg"]
    path = folder / "figures" / "figure_3_scales"
    saliency_figures.scale_figure(scene.colours(first), drop_SHW, scene.scales_px, path)
    if len(scene.triplet_M):
        montage = scene.store.manifest.montage
        triplets = [_triplet(found, scene, image) for image in scene.triplet_M.tolist()]
        path = folder / "figures" / "figure_8_triplets"
        saliency_figures.triplets_figure(triplets, montage.positions_m, path, channels=montage.channels)


def _triplet(found: Results, scene: Scene, image: int) -> RetinotopicTriplet:
    scalp, saliency_HW = found.read(f"scalp-{image:06d}"), found.read(f"map-{image:06d}")["map_eeg"]
    importance_NC, subject_N = scalp["importance"], scalp["subject"].tolist()
    # The map is a mean over subjects already, so each of its segments may stand for it.
    saliency_NHW = np.broadcast_to(saliency_HW, (len(subject_N), *saliency_HW.shape))
    picture_3HW = np.moveaxis(scene.colours(image), -1, 0)
    return retinotopic_triplet(scene.name(image), picture_3HW, saliency_NHW, importance_NC, subject_N)
