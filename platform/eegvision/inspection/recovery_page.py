"""What a recovery study leaves behind: scores as CSV, text and a page, with planted and found side by side."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eegvision import runs
from eegvision.config import RunConfig
from eegvision.evaluate.planted import Found, mean_of
from eegvision.evaluate.saliency import nss
from eegvision.fanout import Results
from eegvision.inspection.opened import Opened
from eegvision.inspection.recovery_settings import RecoverySettings
from eegvision.inspection.recovery_truth import ARMS, QUANTITIES, Arm, masks_of, projections
from eegvision.inspection.saliency_tables import Scene
from eegvision.report import recovery_figures, saliency_figures
from eegvision.report.page import escaped, section, write_page
from eegvision.report.recovery_figures import Scored
from eegvision.report.saliency_figures import MapRow
from eegvision.tracking import code_version, environment

Scores = Mapping[int, Mapping[Arm, Mapping[str, Found]]]
"""seed -> arm -> quantity."""

_WIDE = "font-size:10px;white-space:pre;overflow-x:auto"  # 156 letters
_PICTURES = 4  # with maps on the page
_STRETCHES = {"whole segment, all sources": (0, "all"), "80-160 ms, occipital sources": (2, "occipital"),
              "160-320 ms, temporal sources": (3, "temporal")}  # fmt: skip


def write(
    folder: Path,
    scores: Scores,
    found: Results,
    opened: Mapping[str, Opened],
    base: RunConfig,
    settings: RecoverySettings,
) -> tuple[str, dict[str, float]]:
    """Write everything into a folder; return the table as text, and what MLflow gets.

    Args:
        found: of the first recording, whose maps are drawn.
        opened: the models by ARM-SEED.
    Raises:
        InputError: a chunk is damaged.
    """
    seeds = list(scores)
    text = table(scores)
    _write_scores(folder / "scores.csv", scores)
    summary = {
        "quantities": {
            quantity.key: {
                "chance": quantity.chance,
                **{arm: _said(mean_of([scores[seed][arm][quantity.key] for seed in seeds])) for arm in ARMS},
                "is_recovered": is_recovered(scores, quantity.key),
            }
            for quantity in QUANTITIES
        },
        "seeds": seeds,
        "config": base.to_dict(),
        "settings": vars(settings),
        "code": code_version(),
        "environment": environment(),
    }
    runs.write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    runs.write_whole(folder / "table.txt", text)
    images = _draw(folder / "figures", scores, found, opened)
    _write_page(folder / "report.html", scores, images, base, settings)
    metrics = {
        f"recovery/{quantity.key}/{arm}": mean_of([scores[seed][arm][quantity.key] for seed in seeds]).value
        for quantity in QUANTITIES
        for arm in ARMS
    }
    return text, metrics


def is_recovered(scores: Scores, key: str) -> bool:
    """Say whether the trained model is above chance and, beyond the interval of the difference, above both controls.

    In every seed. Controls may lie below chance, which to be above says nothing.
    """
    chance = next(quantity.chance for quantity in QUANTITIES if quantity.key == key)
    return all(
        by_arm["trained"][key].value > chance
        and all(by_arm["trained"][key].less(by_arm[control][key]).interval()[0] > 0 for control in ARMS[1:])
        for by_arm in scores.values()
    )


def _said(found: Found) -> dict[str, float | tuple[float, float]]:
    return {"value": found.value, "interval": found.interval()}


def _least(scores: Scores, key: str) -> Found:
    """Return the difference to the control that comes nearer, mean over seeds."""
    by_control = [
        mean_of([by_arm["trained"][key].less(by_arm[control][key]) for by_arm in scores.values()])
        for control in ARMS[1:]
    ]
    return min(by_control, key=lambda one: one.value)


def table(scores: Scores) -> str:
    """Return the table of scores as text: means over seeds with intervals, and the difference to the nearer control."""
    head = ("", "chance", *ARMS, "trained - nearer control", "seeds that beat both")
    rows: list[tuple[str, ...]] = [head]
    for quantity in QUANTITIES:
        means = [mean_of([by_arm[arm][quantity.key] for by_arm in scores.values()]) for arm in ARMS]
        cells = [quantity.title, f"{quantity.chance:g}", *map(_cell, means)]
        n_won = sum(is_recovered({seed: by_arm}, quantity.key) for seed, by_arm in scores.items())
        rows.append((*cells, _cell(_least(scores, quantity.key), sign="+"), f"{n_won} of {len(scores)}"))
    width = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{cell:{'<' if n == 0 else '>'}{width[n]}}" for n, cell in enumerate(row)) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join(
        [
            f"What was planted, and what the analyses find: {_counted(len(scores), 'recording')}, means over them",
            *(["", lines[0], rule, *lines[1:], rule]),
            "In brackets: 95 % interval, pictures drawn again within every recording. A seed beats both controls where",
            "the interval of either difference, on the same pictures, lies above 0, and the score above chance.",
        ]
    )


def _cell(found: Found, sign: str = "") -> str:
    low, high = found.interval()
    return f"{found.value:{sign}z.2f} [{low:z.2f}, {high:z.2f}]"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _write_scores(path: Path, scores: Scores) -> None:
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "chance", "seed", "arm", "value", "low", "high"])
        for quantity in QUANTITIES:
            for seed, by_arm in scores.items():
                for arm, own in by_arm.items():
                    value, (low, high) = own[quantity.key].value, own[quantity.key].interval()
                    numbers = [f"{number:.6g}" for number in (value, low, high)]
                    writer.writerow([quantity.key, quantity.chance, seed, arm, *numbers])
    temporary.rename(path)


def _draw(folder: Path, scores: Scores, found: Results, opened: Mapping[str, Opened]) -> dict[str, Path]:
    rows = [
        Scored(
            title=quantity.title,
            measure=quantity.measure,
            chance=quantity.chance,
            of_arm={
                arm: [(by_arm[arm][quantity.key].value, *by_arm[arm][quantity.key].interval())
                      for by_arm in scores.values()]
                for arm in ARMS
            },
        )
        for quantity in QUANTITIES
    ]  # fmt: skip
    recovery_figures.scores_figure(rows, folder / "scores")
    seed = next(iter(scores))
    first = opened[f"trained-{seed}"]
    store = first.store_of(first.load(), has_pictures=False)
    truth, montage = store.manifest.truth, store.manifest.montage
    planted = projections(truth, montage.channels)
    importance = {arm: found.read(f"channels.{arm}")["importance_MKC"].mean(axis=0) for arm in ARMS}
    scalps = {
        row: {"planted": planted[group], **{arm: importance[arm][stretch] for arm in ARMS}}
        for row, (stretch, group) in _STRETCHES.items()
    }
    recovery_figures.planted_scalps_figure(scalps, montage.positions_m, folder / "scalps", channels=montage.channels)
    maps = {arm: found.read(f"saliency.{arm}") for arm in ARMS}
    ids = maps["trained"]["image_id_M"].tolist()
    size_px = maps["trained"]["map_MHW"].shape[1]
    mask_of = masks_of(truth, ids, size_px)
    row_of = {image_id: row for row, image_id in enumerate(store.image_id_M.tolist())}
    shown = np.unique(np.linspace(0, len(ids) - 1, _PICTURES).round().astype(int)).tolist()
    scene = Scene(
        store=store,
        image_M=np.array([row_of[ids[at]] for at in shown]),
        triplet_M=np.empty(0, dtype=np.int64),
        size_px=size_px,
        scales_px=(),
        dataset=first.config.data.dataset,
    )
    map_rows = []
    for at in shown:
        image, mask_HW = row_of[ids[at]], mask_of[ids[at]]
        own = {arm: maps[arm]["map_MHW"][at] for arm in ARMS}
        map_rows.append(
            MapRow(
                image_id=ids[at],
                class_name=scene.class_name(image),
                picture_HW3=scene.colours(image),
                gaze_HW=None,
                maps={"planted object": mask_HW.astype(np.float32), **own},
                scores={arm: float(nss(map_HW, np.argwhere(mask_HW)).mean()) for arm, map_HW in own.items()},
            )
        )
    title = "Saliency of a trained model and of both controls"
    saliency_figures.maps_figure(map_rows, folder / "maps", title=title)
    return {name: folder / f"{name}.svg" for name in ("scores", "scalps", "maps")}


def _write_page(
    path: Path, scores: Scores, images: Mapping[str, Path], base: RunConfig, settings: RecoverySettings
) -> None:
    won = [is_recovered(scores, quantity.key) for quantity in QUANTITIES]
    grade = "green" if all(won) else "amber"
    said = "every planted quantity is found" if all(won) else f"{sum(won)} of {len(won)} planted quantities are found"
    head = (
        f'<header class="{grade}"><p class="eyebrow">Recovery of a planted truth</p><h1>{escaped(said)}</h1>'
        f'<p class="size">{_counted(len(scores), "simulated recording")}, {_counted(settings.subjects, "subject")}, '
        f"{settings.channels} channels, {settings.classes * settings.images_per_class} pictures of {settings.classes} "
        f"classes; {escaped(base.eeg.encoder)} and {escaped(base.image.encoder)}</p>"
        "<p>Found: in every recording the trained model is above chance and beats the untrained one and the one "
        "trained on shuffled pairs, beyond the 95 % interval of the difference on the same pictures.</p></header>"
    )
    meanings = "".join(
        f"<li><strong>{escaped(quantity.title)}</strong>: {escaped(quantity.says)}</li>" for quantity in QUANTITIES
    )
    numbers = f'<pre style="{_WIDE}">{escaped(table(scores))}</pre>'
    body = [
        head,
        section("Scores", f"{_image(images['scores'])}{numbers}<ul>{meanings}</ul>"),
        section("Where in the head", _image(images["scalps"])),
        section("Where in the picture", _image(images["maps"])),
    ]
    write_page(path, "Recovery of a planted truth", body)


def _image(path: Path) -> str:
    """Return a figure as part of a page: as an image of its own, since two figures may use one name for a part."""
    data = base64.b64encode(path.read_bytes()).decode()
    look = "width:100%;max-width:900px"
    return f'<figure><img style="{look}" alt="{path.stem}" src="data:image/svg+xml;base64,{data}"></figure>'
