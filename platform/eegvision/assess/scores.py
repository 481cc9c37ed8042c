"""What is asked of a model, what comes back, and what all scores have in common: intervals, groups, circumstances."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegvision import pseudonyms
from eegvision.evaluate import statistics
from eegvision.evaluate.retrieval import Normalise
from eegvision.evaluate.zero_shot import GalleryKind, Transductive
from eegvision.vocab import InputError, SplitName

Protocol = Literal["probe", "zero-shot"]

_MIN_SUBJECTS = 5  # below, drawing subjects again gives no interval worth the name


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a model."""

    protocol: Protocol = "zero-shot"
    """`probe`: a softmax layer on frozen embeddings (Palazzo); `zero-shot`: retrieval among the side's pictures."""
    galleries: tuple[GalleryKind, ...] = ("exact-image", "class-centre-without-stimulus")
    """zero-shot: what is retrieved; class centres are skipped where there are no classes or no other pictures."""
    normalise: Normalise = "both"
    """zero-shot: which side's embeddings are brought to unit length before the dot product."""
    transductive: Transductive = "none"
    """zero-shot: use what the queries tell about each other; such scores stand apart."""
    repetitions: int | None = None
    """Presentations averaged into a query, 0 for all; by default as in training's validation."""
    curve: bool = True
    """zero-shot: accuracy against the number of averaged presentations, where there are several."""
    categories: Path | None = None
    """CSV with the columns label_name and category: scores per semantic category."""
    centres: Path | None = None
    """zero-shot: .npy with a feature per class in the order of class names, used as class centres (such as NICE's)."""
    level: float = 0.95
    """Coverage of intervals."""
    seed: int = 0
    """Of resamples, permutations and draws."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one model on one side: a row per score with its circumstances.

    `curves` has a row per subject and number of presentations; `confusion` the classes and how often the first was
    taken for the second; `predictions` a column per name, a row per query.
    """

    protocol: Protocol
    side: SplitName
    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None
    predictions: dict[str, list[Any]] = field(default_factory=dict)


def accuracy_rows(
    is_right_N: np.ndarray,
    *,
    unit_N: np.ndarray,
    subject_N: np.ndarray | None,
    chance: float,
    groups: dict[str, np.ndarray],
    question: Question,
) -> list[dict[str, Any]]:
    """One row for all items and one for each group, with interval, chance and the line guessing seldom reaches."""
    rows = []
    for group_name, group_N in {"all": np.full(len(is_right_N), "all"), **groups}.items():
        for group in np.unique(group_N).tolist():
            is_in_N = group_N == group
            own_subject_N = None if subject_N is None else subject_N[is_in_N]
            low, high = interval(is_right_N[is_in_N], unit_N[is_in_N], own_subject_N, question)
            n_images = len(np.unique(unit_N[is_in_N]))
            rows.append(
                {
                    "group_name": group_name,
                    "group": group,
                    "value": float(is_right_N[is_in_N].mean()),
                    "low": low,
                    "high": high,
                    "chance": chance,
                    "significance_line": statistics.significance_line(n_images, chance),
                    "p": None,
                    "n_queries": int(is_in_N.sum()),
                    "n_images": n_images,
                }
            )
    return rows


def interval(
    value_N: np.ndarray, unit_N: np.ndarray, subject_N: np.ndarray | None, question: Question
) -> tuple[float | None, float | None]:
    """Draw pictures again, and subjects too where there are enough of them; None of a single picture."""
    if len(np.unique(unit_N)) < 2:
        return None, None
    options = {"level": question.level, "seed": question.seed, "n_resamples": 4000}
    if subject_N is not None and len(np.unique(subject_N)) >= _MIN_SUBJECTS:
        return statistics.twoway_interval(value_N, subject_N, unit_N, **options)
    return statistics.bootstrap_interval(value_N, unit_N, **options, small_sample=True)


def groups_of(
    question: Question, names: Sequence[str], label_N: np.ndarray, subject_N: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the group of each item by kind of group: subject (by its pseudonym), class, semantic category."""
    groups: dict[str, np.ndarray] = {}
    if subject_N is not None and len(np.unique(subject_N)) > 1:
        groups["subject"] = np.array([pseudonyms.pseudonym(name) for name in subject_N.tolist()])
    if (label_N >= 0).all() and len(np.unique(label_N)) > 1:
        groups["class"] = np.array([names[label] for label in label_N])
        if question.categories is not None:
            category_of = read_categories(question.categories)
            if missing := sorted(set(groups["class"].tolist()) - category_of.keys()):
                raise InputError(
                    f"{question.categories} has no category for the class {missing[0]!r}; add a line for it"
                )
            groups["category"] = np.array([category_of[name] for name in groups["class"].tolist()])
    return groups


def read_categories(path: Path) -> dict[str, str]:
    """Return the semantic category of each class from a CSV with the columns label_name and category.

    Raises:
        InputError: the file cannot be read, or a line has no category.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the categories {path}: {error}") from error
    for number, line in enumerate(lines, start=2):
        if not line.get("label_name") or not line.get("category"):
            raise InputError(f"{path}, line {number}: expected the columns label_name and category, both filled")
    return {line["label_name"]: line["category"] for line in lines}


def confusion_of(
    label_N: np.ndarray, predicted_N: np.ndarray, names: Sequence[str], categories: Path | None
) -> dict[str, Any]:
    """Return how often items of each class (rows) were taken for each class (columns), of the classes that occur."""
    shown = np.unique(np.concatenate([label_N, predicted_N]))
    count_KK = np.zeros((len(shown), len(shown)), dtype=np.int64)
    np.add.at(count_KK, (np.searchsorted(shown, label_N), np.searchsorted(shown, predicted_N)), 1)
    found = {"classes": [names[label] for label in shown], "count_KK": count_KK.tolist()}
    if categories is not None:
        category_of = read_categories(categories)
        found["categories"] = [category_of.get(name, "other") for name in found["classes"]]
    return found
