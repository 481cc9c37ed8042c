"""NICE (Song et al., ICLR 2024): zero-shot retrieval within and across subjects, for the encoders of the paper.

Within: each subject's own EEG in training and test. Across: training without the tested subject (leave one out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from eegvision.assess.scores import Question
from eegvision.config import EegConfig, EegEncoderName, RunConfig
from eegvision.evaluate.zero_shot import GalleryKind
from eegvision.ingest import shards
from eegvision.pseudonyms import pseudonym
from eegvision.recipes.plan import (
    Measure,
    Say,
    Scored,
    circumstances,
    of_key,
    over_subjects,
    publish,
    run_plan,
    score,
    seeded,
)
from eegvision.report import published
from eegvision.report.grid_tables import Table
from eegvision.vocab import InputError, SplitRule

Setting = Literal["within", "across"]

_TITLES = {"within": "NICE table. Within subjects", "across": "NICE table. Across subjects (leave one out)"}
_METHODS = {"tsconv": "NICE", "nice-sa": "NICE-SA", "nice-ga": "NICE-GA", "atm-s": "ATM-S"}


def configs_of(
    base: RunConfig, settings: Sequence[Setting], eegs: Sequence[EegEncoderName], subjects: Sequence[str], n_seeds: int
) -> dict[str, RunConfig]:
    """Return one training per setting, encoder, subject and seed."""
    found: dict[str, RunConfig] = {}
    for setting in settings:
        for eeg in eegs:
            for subject in subjects:
                data = (
                    replace(base.data, subjects=(subject,))
                    if setting == "within"
                    else replace(base.data, held_out=subject)
                )
                own = replace(base, data=data, eeg=EegConfig(encoder=eeg, embed_dim=base.eeg.embed_dim))
                found |= seeded(_key(setting, eeg, subject), own, n_seeds)
    return found


def run(
    name: str,
    base: RunConfig,
    *,
    settings: Sequence[Setting] = get_args(Setting),
    eegs: Sequence[EegEncoderName] = ("tsconv", "nice-sa", "nice-ga"),
    gallery: GalleryKind = "exact-image",
    n_seeds: int = 3,
    cpus: float = 1.0,
    gpus: float | None = None,
    again: str | None = None,
    say: Say,
) -> list[Table]:
    """Train, score and tabulate; returns the tables.

    Raises:
        InputError: fewer than two subjects for the setting across them.
    """
    manifest = shards.read_manifest(shards.dataset_root(base.data.dataset))
    subjects = base.data.subjects or tuple(manifest.subjects)
    if "across" in settings and len(subjects) < 2:
        raise InputError(f"{manifest.name!r} has one subject, so none can be left out; ask for --settings within")
    configs = configs_of(base, settings, eegs, subjects, n_seeds)
    title = "NICE, within and across subjects"
    question = Question(galleries=(gallery,), curve=False)
    scored = run_plan(name, configs, question, title=title, say=say, cpus=cpus, gpus=gpus, again=again)
    tables = [table(scored, setting, eegs, subjects, gallery, n_seeds) for setting in settings]
    publish(name, tables, say)
    return tables


def table(
    scored: dict[str, Scored],
    setting: Setting,
    eegs: Sequence[str],
    subjects: Sequence[str],
    gallery: GalleryKind,
    n_seeds: int,
) -> Table:
    """Top-1 and top-5 by encoder: the mean over subjects first, then each subject's top-1."""
    rows = {}
    for eeg in eegs:
        parts = [of_key(scored, _key(setting, eeg, subject)) for subject in subjects]
        paper = published.nice(_METHODS[eeg], setting) if eeg in _METHODS else None
        top_1, top_5 = (Measure(gallery=gallery, k=k) for k in (1, 5))
        rows[_METHODS.get(eeg, eeg)] = (
            over_subjects(parts, top_1, published=paper.top1 if paper else None),
            over_subjects(parts, top_5, published=paper.top5 if paper else None),
            *(score(seeds, top_1) for seeds in parts),
        )
    found = {key: one for key, one in scored.items() if key.startswith(setting)}
    n_gallery = {row["n_gallery"] for one in found.values() for row in one.record["rows"] if row["group_name"] == "all"}
    ways = " or ".join(f"{n}-way" for n in sorted(n_gallery))
    return Table(
        title=_TITLES[setting],
        caption=f"Zero-shot retrieval, {ways}, gallery {gallery}, cosine; {_averaged(found)}. "
        f"{circumstances(found, n_seeds)}",
        columns=("top-1", "top-5", *(f"subject {number} top-1" for number in range(1, len(subjects) + 1))),
        rows=rows,
        notes=[
            "The means' intervals draw subjects and pictures again from five subjects on, else pictures alone.",
            published.NICE.circumstances,
        ],
        source=published.NICE.citation,
    )


def default_split(dataset: str) -> SplitRule:
    """Return `zero-shot` where the data set has published test pictures of concepts of their own, else a like split."""
    manifest = shards.read_manifest(shards.dataset_root(dataset))
    return "zero-shot" if (manifest.published or {}).get("test") else "concept-disjoint"


def _averaged(scored: dict[str, Scored]) -> str:
    counts = {row["repetitions"] for one in scored.values() for row in one.record["rows"]}
    return "single presentations" if counts == {1} else f"mean of {' or '.join(map(str, sorted(counts)))} presentations"


def _key(setting: str, eeg: str, subject: str) -> str:
    return f"{setting}.{eeg}.{pseudonym(subject)}"
