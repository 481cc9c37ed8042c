"""What a trained model's embeddings know of meaning: similarities ordered by category, and maps in two dimensions.

    RUN/semantic/TRIAL.SIDE.HASH/similarity.csv  matrix-*.csv  figures/

Axes: N samples of the side, M pictures of the side, D embedding, K concepts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eegvision import runs
from eegvision.analyses.semantic import SemanticSimilarity, mds_map, pca_map, semantic_similarity
from eegvision.assess.scores import read_categories
from eegvision.inspection.feature_settings import SemanticSettings
from eegvision.inspection.opened import Bench, log_run, open_run, require_both_sides
from eegvision.report.association_figures import embedding_map_figure, similarity_figure
from eegvision.stream import Store
from eegvision.vocab import InputError, SplitName

Say = Callable[[str], None]

_BATCH = 256
_TITLES = {"eeg-pictures": "EEG by pictures", "eeg-eeg": "EEG by EEG", "pictures-pictures": "pictures by pictures"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Concepts:
    """What is compared: the concept of every picture of the side, and which category each concept is of.

    Attributes:
        kind: what concepts and categories are, in words.
        concept_M: of each picture.
        category_of: in the order in which concepts are to appear.
        name_M: of each picture, what a map calls it.
    """

    kind: str
    concept_M: tuple[str, ...]
    category_of: dict[str, str]
    name_M: tuple[str, ...]


def run_semantic(
    name: str,
    *,
    trial: int | None,
    side: SplitName,
    settings: SemanticSettings,
    again: str | None = None,
    say: Say,
) -> Path:
    """Compare concepts in the embeddings of a trial of the run `name` (the best one, if no number is given).

    Leaves tables and figures in the folder that is returned, and an MLflow run. Takes seconds, in this process.

    Args:
        again: why the test set is opened although another model of the run was scored on it.
    Raises:
        InputError: there is no such run or trial, its data have changed, it knows one side alone; or nothing says
            which of its pictures are alike.
    """
    purpose = f"semantic similarity of {'the best trial' if trial is None else f'trial {trial}'}"
    opened = open_run(name, trial=trial, side=side, purpose=purpose, again=again, say=say)
    require_both_sides(opened)
    bench = Bench(opened)
    concepts = concepts_of(bench.store, bench.image_M, settings.categories)
    row_N = np.concatenate([bench.rows_of(image) for image in bench.image_M.tolist()])
    column_N = np.searchsorted(bench.image_M, bench.store.image_N[row_N])
    say(f"{name}, trial {opened.number}: {concepts.kind}; {len(row_N)} {side} segments, {len(bench.image_M)} pictures")
    eeg_ND, image_MD = _eeg(bench, row_N), bench.image_embeddings(bench.image_M).cpu().numpy()
    of_eeg = (eeg_ND, [concepts.concept_M[column] for column in column_N])
    of_pictures = (image_MD, concepts.concept_M)
    options = {"n_permutations": settings.permutations, "seed": settings.seed}
    found = {
        "eeg-pictures": semantic_similarity(*of_eeg, *of_pictures, concepts.category_of, **options),
        "eeg-eeg": semantic_similarity(*of_eeg, *of_eeg, concepts.category_of, **options),
        "pictures-pictures": semantic_similarity(*of_pictures, *of_pictures, concepts.category_of, **options),
    }
    folder = opened.folder("semantic", settings)
    _write_tables(folder, found)
    _draw(folder, found, concepts, eeg_ND, column_N, image_MD)
    text = table(found, concepts)
    say(f"\n{text}\n")
    metrics = {
        f"semantic/{pair}/{what}": value
        for pair, one in found.items()
        for what, value in {"within": one.within, "between": one.between, "p": one.p}.items()
    }
    runs.write_whole(folder / "summary.json", json.dumps(opened.about(settings) | {"found": metrics}, indent=1))
    log_run(opened, "semantic", folder, settings=settings, metrics=metrics, note=f"```\n{text}\n```", say=say)
    return folder


def concepts_of(store: Store, image_M: np.ndarray, categories: Path | None) -> Concepts:
    """Return what is compared among pictures: classes by the category a file gives them, else pictures by class.

    Raises:
        InputError: pictures have no classes, or the file has no category for one of them.
    """
    label_M, classes = store.label_M[image_M], store.manifest.classes
    if (label_M < 0).any():
        raise InputError(
            f"{np.count_nonzero(label_M < 0)} of {len(label_M)} pictures have no class, so nothing says which are "
            "alike; ingest the data with labels"
        )
    class_M = tuple(classes[label] for label in label_M)
    if categories is not None:
        category_of = read_categories(categories)
        if missing := sorted(set(class_M) - category_of.keys()):
            raise InputError(f"{categories} has no category for the class {missing[0]!r}; add a line for it")
        return Concepts(kind="classes by category", concept_M=class_M, category_of=category_of, name_M=class_M)
    if len(set(class_M)) == len(class_M) or len(set(class_M)) == 1:
        raise InputError(
            f"{len(class_M)} pictures of {len(set(class_M))} classes: nothing says which classes are alike; give a CSV "
            "with the columns label_name and category as --categories"
        )
    image_id_M = store.image_id_M[image_M].tolist()
    order = sorted(range(len(class_M)), key=lambda column: (label_M[column], image_id_M[column]))
    return Concepts(
        kind="pictures by class",
        concept_M=tuple(image_id_M),
        category_of={image_id_M[column]: class_M[column] for column in order},
        name_M=class_M,
    )


@torch.no_grad()
def _eeg(bench: Bench, row_N: np.ndarray) -> np.ndarray:
    parts = [bench.eeg(row_B) for row_B in np.split(row_N, range(_BATCH, len(row_N), _BATCH))]
    return np.concatenate([bench.model.encode_eeg(eeg_BCT, subject_B).cpu().numpy() for eeg_BCT, subject_B in parts])


def _write_tables(folder: Path, found: dict[str, SemanticSimilarity]) -> None:
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    rows = [
        {
            "compared": pair, "n_concepts": len(one.concepts), "n_categories": len(one.runs), "within": one.within,
            "between": one.between, "p": one.p,
        }
        for pair, one in found.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "similarity.csv", index=False)
    for pair, one in found.items():
        matrix = pd.DataFrame(one.similarity_KK, columns=list(one.concepts))
        matrix.insert(0, "category", list(one.categories))
        matrix.insert(0, "concept", list(one.concepts))
        matrix.to_csv(folder / f"matrix-{pair}.csv", index=False)


def _draw(
    folder: Path,
    found: dict[str, SemanticSimilarity],
    concepts: Concepts,
    eeg_ND: np.ndarray,
    column_N: np.ndarray,
    image_MD: np.ndarray,
) -> None:
    figures = folder / "figures"
    similarity_figure(found["eeg-pictures"], figures / "similarity")

    def draw(position_X2: np.ndarray, column_X: Sequence[int], name: str) -> None:
        names = [concepts.name_M[column] for column in column_X]
        kinds = [concepts.category_of[concepts.concept_M[column]] for column in column_X]
        embedding_map_figure(position_X2, names, kinds, figures / name)

    draw(pca_map(eeg_ND).position_NA, column_N.tolist(), "pca-eeg")
    draw(pca_map(image_MD).position_NA, range(len(image_MD)), "pca-pictures")
    for pair, name in (("eeg-eeg", "mds-eeg"), ("pictures-pictures", "mds-pictures")):
        one = found[pair]
        column_of = {concept: column for column, concept in enumerate(concepts.concept_M)}
        position_K2 = mds_map(1 - one.similarity_KK).position_NA
        draw(position_K2, [column_of[concept] for concept in one.concepts], name)


def table(found: dict[str, SemanticSimilarity], concepts: Concepts) -> str:
    """Return the comparisons as text."""
    first = next(iter(found.values()))
    lines = [
        f"mean cosine of two concepts: {len(first.concepts)} {concepts.kind} ({len(first.runs)} of these)",
        "",
        f"{'':20}  {'within':>7}  {'between':>7}  {'p':>7}",
        "-" * 47,
    ]
    for pair, one in found.items():
        p = "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
        lines.append(f"{_TITLES[pair]:20}  {one.within:7.3f}  {one.between:7.3f}  {p:>7}")
    return "\n".join([*lines, "p: concepts trade categories"])
