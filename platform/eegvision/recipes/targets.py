"""Which image target, which channels, which normalisation: the factors behind the field's progress, crossed.

    layer of the image network x blur of the picture x channels x normalisation in the loss

Every combination is trained alike; a factor's effect is the mean over all others, compared on the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from eegvision.assess.scores import Question
from eegvision.config import RunConfig
from eegvision.recipes.plan import (
    Measure,
    Say,
    Scored,
    circumstances,
    corrected_p,
    gain,
    of_key,
    publish,
    run_plan,
    said_p,
    score,
    seeded,
)
from eegvision.report.grid_tables import Cell as Score
from eegvision.report.grid_tables import Table
from eegvision.vocab import InputError

CHANNEL_SETS: Mapping[str, tuple[str, ...]] = {"all": (), "posterior": ("P*", "O*")}
"""`posterior` takes parietal and occipital channels: P7 to O2, 17 of THINGS-EEG2's 63."""
NORMALISED = ("both", "image")
TOP_1, TOP_5 = Measure(k=1), Measure(k=5)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Levels of each factor; the first of each is the one others are compared with."""

    layers: tuple[str, ...] = ("last", "0.67", "0.33")
    """Where image features are taken (`image.layer`)."""
    blurs_px: tuple[float, ...] = (0.0, 4.0)
    """Sd of the blur of the pictures before the image network (`image.blur_px`)."""
    channels: tuple[str, ...] = ("all", "posterior")
    """Channel sets: all, posterior."""
    normalised: tuple[str, ...] = ("both", "image")
    """Embeddings of unit length in the loss: both, or the image's alone."""

    def __post_init__(self) -> None:
        for what, given, known in (
            ("channels", self.channels, CHANNEL_SETS),
            ("normalised", self.normalised, NORMALISED),
        ):
            if unknown := [level for level in given if level not in known]:
                raise InputError(f"{what} {unknown[0]!r}; expected among {', '.join(known)}")


def configs_of(base: RunConfig, factors: Factors, n_seeds: int) -> dict[str, RunConfig]:
    """Return every combination of the factors' levels."""
    found: dict[str, RunConfig] = {}
    for levels in product(factors.layers, factors.blurs_px, factors.channels, factors.normalised):
        layer, blur_px, channels, normalised = levels
        own = replace(
            base,
            data=replace(base.data, channels=CHANNEL_SETS[channels]),
            image=replace(base.image, frozen=True, layer=layer, blur_px=blur_px),
            loss=replace(base.loss, normalise_eeg=normalised == "both", normalise_image=True),
        )
        found |= seeded(_key(levels), own, n_seeds)
    return found


def run(
    name: str,
    base: RunConfig,
    *,
    factors: Factors,
    n_seeds: int = 3,
    cpus: float = 1.0,
    gpus: float | None = None,
    again: str | None = None,
    say: Say,
) -> list[Table]:
    """Make the features, train, score and tabulate; returns the tables.

    Raises:
        InputError: the image encoder runs no network whose layers could be chosen.
    """
    configs = configs_of(base, factors, n_seeds)
    title = "image target, channels and normalisation"
    question = Question(galleries=("exact-image",), curve=False)
    scored = run_plan(name, configs, question, title=title, say=say, cpus=cpus, gpus=gpus, again=again)
    tables = [effects(scored, factors, n_seeds), combinations(scored, factors, n_seeds)]
    publish(name, tables, say)
    return tables


def effects(scored: dict[str, Scored], factors: Factors, n_seeds: int) -> Table:
    """What each level of a factor changes against its first level, all other factors taken together."""
    pairs: dict[str, tuple[list[Scored], list[Scored]]] = {}
    for at, (what, levels) in enumerate(vars(factors).items()):
        first, *others = levels
        for level in others:
            # Matched pairs: the same other factors and seed, so that the differences are of this factor alone.
            ours, theirs = (_with_level(scored, factors, at, chosen) for chosen in (level, first))
            pairs[f"{what.replace('_px', '')}: {level} against {first}"] = (ours, theirs)
    cells: dict[str, list[Score]] = {label: [] for label in pairs}
    for measure in (TOP_1, TOP_5) if pairs else ():
        corrected = corrected_p(list(pairs.values()), measure)
        for (label, (ours, theirs)), p in zip(pairs.items(), corrected, strict=True):
            cells[label] += [gain(ours, theirs, measure)[0], Score(value=None, text=said_p(p))]
    return Table(
        title="Targets A. What each factor changes",
        caption=f"Difference in retrieval of test pictures. {circumstances(scored, n_seeds)}",
        columns=("top-1", "p", "top-5", "p"),
        rows=cells,
        notes=[
            "Intervals take pictures, and combinations of the other factors and seeds, for samples.",
            f"p: two-sided, corrected for all {len(pairs)} effects at once (largest statistic); pictures flip sign.",
        ],
    )


def combinations(scored: dict[str, Scored], factors: Factors, n_seeds: int) -> Table:
    """Every combination, in the order of the factors."""
    rows = {}
    for levels in product(*vars(factors).values()):
        seeds = of_key(scored, _key(levels))
        rows[", ".join(map(str, levels))] = (score(seeds, TOP_1), score(seeds, TOP_5))
    return Table(
        title="Targets B. All combinations",
        caption=f"Rows: {', '.join(vars(factors)).replace('_px', '')}. {circumstances(scored, n_seeds)}",
        columns=("top-1", "top-5"),
        rows=rows,
    )


def _with_level(scored: dict[str, Scored], factors: Factors, at: int, level: object) -> list[Scored]:
    """Return all trainings in which a factor has this level, in the order of the other factors and seeds."""
    levels = [(level,) if number == at else tuple(own) for number, own in enumerate(vars(factors).values())]
    return [one for combination in product(*levels) for one in of_key(scored, _key(combination))]


def _key(levels: Sequence[object]) -> str:
    return "_".join(str(level).replace("/", "-") for level in levels)
