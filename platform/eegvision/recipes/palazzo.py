"""Palazzo et al., Tables I to III: encoder pairs, and what training together adds to each side.

Every model is scored by a softmax layer on its frozen embeddings, fitted on training data, its penalty chosen on
validation, and asked for the class of test pictures (of test EEG).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal, get_args

import numpy as np

from eegvision.assess.scores import Question
from eegvision.config import EegEncoderName, ImageEncoderName, RunConfig
from eegvision.recipes.plan import (
    Measure,
    Say,
    Scored,
    arm,
    circumstances,
    gain,
    mean_score,
    of_key,
    publish,
    run_plan,
    said_p,
    score,
    seeded,
)
from eegvision.report import published
from eegvision.report.grid_tables import Cell as Score
from eegvision.report.grid_tables import Table

Part = Literal["I", "II", "III"]

EEG, IMAGE = Measure(probe_side="eeg"), Measure(probe_side="image")


def configs_of(
    base: RunConfig,
    parts: Sequence[Part],
    images: Sequence[ImageEncoderName],
    eegs: Sequence[EegEncoderName],
    n_seeds: int,
) -> dict[str, RunConfig]:
    """Return what the tables need: all pairs for each of them, and each encoder alone for II (image) and III (EEG)."""
    found: dict[str, RunConfig] = {}
    for image, eeg in product(images, eegs):
        pair = replace(base, eeg=replace(base.eeg, encoder=eeg), image=replace(base.image, encoder=image))
        found |= seeded(_pair(image, eeg), pair, n_seeds)
        if "II" in parts:
            found |= seeded(f"image-{image}", arm(pair, "image"), n_seeds)
        if "III" in parts:
            found |= seeded(f"eeg-{eeg}", arm(pair, "eeg"), n_seeds)
    return found


def run(
    name: str,
    base: RunConfig,
    *,
    parts: Sequence[Part] = get_args(Part),
    images: Sequence[ImageEncoderName] = ("inception_v3", "resnet101", "densenet161", "alexnet"),
    eegs: Sequence[EegEncoderName] = ("palazzo-lstm", "palazzo-gru"),
    n_seeds: int = 3,
    cpus: float = 1.0,
    gpus: float | None = None,
    again: str | None = None,
    say: Say,
) -> list[Table]:
    """Train, score and tabulate; returns the tables."""
    configs = configs_of(base, parts, images, eegs, n_seeds)
    title = "Palazzo et al., Tables I to III"
    scored = run_plan(
        name, configs, Question(protocol="probe"), title=title, say=say, cpus=cpus, gpus=gpus, again=again
    )
    made = {"I": table_1, "II": table_2, "III": table_3}
    tables = [made[part](scored, images, eegs, n_seeds) for part in parts]
    publish(name, tables, say)
    return tables


def table_1(scored: dict[str, Scored], images: Sequence[str], eegs: Sequence[str], n_seeds: int) -> Table:
    """Accuracy of EEG and image embeddings for every encoder pair."""
    rows = {}
    for image, eeg in product(images, eegs):
        seeds, paper = of_key(scored, _pair(image, eeg)), published.PALAZZO_I.get((image, eeg))
        pair = (
            score(seeds, EEG, published=paper.eeg if paper else None),
            score(seeds, IMAGE, published=paper.image if paper else None),
        )
        rows[f"{image} + {eeg}"] = (*pair, mean_score(pair))
    return Table(
        title="Table I. Encoder pairs",
        caption=f"Class of test EEG and of test pictures from joint embeddings. {circumstances(scored, n_seeds)}",
        columns=("EEG", "image", "average"),
        rows=rows,
        notes=_warnings(rows),
        source=_source(rows),
    )


def table_2(scored: dict[str, Scored], images: Sequence[str], eegs: Sequence[str], n_seeds: int) -> Table:
    """Image accuracy of visual features alone against features trained with EEG."""
    rows, notes = {}, []
    for image in images:
        alone, paper = of_key(scored, f"image-{image}"), published.PALAZZO_II.get(image)
        best = _best_on_validation(scored, [_pair(image, eeg) for eeg in eegs])
        joint = of_key(scored, best)
        difference, p = gain(joint, alone, IMAGE, published=paper.joint - paper.alone if paper else None)
        rows[image] = (
            score(alone, IMAGE, published=paper.alone if paper else None),
            score(joint, IMAGE, published=paper.joint if paper else None),
            difference,
        )
        notes.append(
            f"{image}: joint with {best.partition('.')[2]} (the better one on validation); difference p {said_p(p)}"
        )
    return Table(
        title="Table II. Pictures: alone and joint",
        caption=f"Class of test pictures. {circumstances(scored, n_seeds)}",
        columns=("image only", "joint", "joint - alone"),
        rows=rows,
        notes=[*notes, *_warnings(rows)],
        source=_source(rows),
    )


def table_3(scored: dict[str, Scored], images: Sequence[str], eegs: Sequence[str], n_seeds: int) -> Table:
    """EEG accuracy of an encoder trained as a classifier against the same one trained with pictures."""
    rows, notes = {}, []
    for eeg in eegs:
        alone, paper = of_key(scored, f"eeg-{eeg}"), published.PALAZZO_III.get(eeg)
        best = _best_on_validation(scored, [_pair(image, eeg) for image in images])
        joint = of_key(scored, best)
        difference, p = gain(joint, alone, EEG, published=paper.joint - paper.alone if paper else None)
        rows[eeg] = (
            score(alone, EEG, published=paper.alone if paper else None),
            score(joint, EEG, published=paper.joint if paper else None),
            difference,
        )
        image = best.partition(".")[0].removeprefix("joint-")
        notes.append(f"{eeg}: joint with {image} (the better one on validation); difference p {said_p(p)}")
    return Table(
        title="Table III. EEG: alone and joint",
        caption=f"Class of test EEG. {circumstances(scored, n_seeds)}",
        columns=("EEG only", "joint", "joint - alone"),
        rows=rows,
        notes=[*notes, *_warnings(rows)],
        source=_source(rows),
    )


def _pair(image: str, eeg: str) -> str:
    return f"joint-{image}.{eeg}"


def _best_on_validation(scored: dict[str, Scored], keys: Sequence[str]) -> str:
    """Return the configuration with the best validation metric over its seeds; the test set has no say."""

    def value(key: str) -> float:
        rows = [one.row for one in of_key(scored, key)]
        sign = 1 if rows[0].config.mode == "max" else -1
        return sign * float(np.mean([row.metrics[row.config.metric] for row in rows]))

    return max(keys, key=value)


def _is_beside_paper(rows: Mapping[str, Sequence[Score]]) -> bool:
    return any(cell.published is not None for cells in rows.values() for cell in cells)


def _warnings(rows: Mapping[str, Sequence[Score]]) -> list[str]:
    return [published.PALAZZO_WARNING] if _is_beside_paper(rows) else []


def _source(rows: Mapping[str, Sequence[Score]]) -> str:
    return published.PALAZZO.citation if _is_beside_paper(rows) else ""
