"""What models of several seeds answered, held against guessing, against each other, and against looking too often.

Axes: S seeds, Q queries, U images, P passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eegvision.evaluate.comparisons import compare_pair, seed_components
from eegvision.evaluate.statistics import bootstrap_interval, label_permutation_p
from eegvision.vocab import InputError

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What the models of S seeds answered to the same Q queries: a class or, with `truth_Q` the image, an image."""

    predicted_SQ: np.ndarray
    truth_Q: np.ndarray
    image_Q: np.ndarray
    query_Q: np.ndarray

    def __post_init__(self) -> None:
        assert self.predicted_SQ.ndim == 2
        assert self.predicted_SQ.shape[1:] == self.truth_Q.shape == self.image_Q.shape == self.query_Q.shape

    @property
    def hit_SQ(self) -> np.ndarray:
        """Whether each answer is right."""
        return self.predicted_SQ == self.truth_Q

    def of(self, query_Q: np.ndarray) -> Answers:
        """Return the answers to these queries, in their order."""
        place = {query: place for place, query in enumerate(self.query_Q.tolist())}
        chosen = np.array([place[query] for query in query_Q.tolist()], dtype=np.int64)
        return Answers(
            predicted_SQ=self.predicted_SQ[:, chosen],
            truth_Q=self.truth_Q[chosen],
            image_Q=self.image_Q[chosen],
            query_Q=query_Q,
        )


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score against guessing: `p` when images trade truths, one-sided; interval over images; `n` images."""

    value: float
    low: float
    high: float
    chance: float
    p: float
    n: int

    @property
    def is_above(self) -> bool:
        """Say whether the score alone is above chance."""
        return self.p <= ALPHA

    def __str__(self) -> str:
        return f"{percent(self.value)} (95 % {percent(self.low)} to {percent(self.high)}; {self.aside})"

    @property
    def aside(self) -> str:
        """Chance and p, for a bracket."""
        return f"chance {percent(self.chance)}, p {p_text(self.p)}"


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The same queries with a leak (`shared`) and without (`apart`); `is_matched`: training was as large in both.

    `p` is one-sided: that nothing was lost. `low` and `high` are of the difference, apart - shared.
    """

    shared: Score
    apart: Score
    difference: float
    low: float
    high: float
    p: float
    is_matched: bool

    @property
    def lost(self) -> float:
        """Share of what is above chance that goes with the leak."""
        return (self.shared.value - self.apart.value) / max(1e-9, self.shared.value - self.shared.chance)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One score by three rules: `fixed` last pass; pass chosen by other seeds; `chosen` on the very pictures scored."""

    fixed: float
    by_other_seeds: float | None
    chosen: float
    n_passes: int


def against_chance(answers: Answers, *, n_permutations: int = 10_000) -> Score:
    """Test answers of several seeds together against guessing, images as the sample.

        chance = mean_sq (share of images whose truth is what was answered)        the mean under the permutation

    All answers to an image, whoever's and of whichever seed, keep together when images trade truths.

    Raises:
        InputError: fewer than two images.
    """
    n_seeds = len(answers.predicted_SQ)
    images_U, first_U = np.unique(answers.image_Q, return_index=True)
    if len(images_U) < 2:
        raise InputError(f"{len(images_U)} picture is left to be scored; nothing can be told apart")
    truths, count = np.unique(answers.truth_Q[first_U], return_counts=True)
    place_SQ = np.minimum(np.searchsorted(truths, answers.predicted_SQ), len(truths) - 1)
    share_SQ = np.where(truths[place_SQ] == answers.predicted_SQ, count[place_SQ] / len(images_U), 0.0)
    value, p = label_permutation_p(
        answers.predicted_SQ.ravel(),
        np.tile(answers.truth_Q, n_seeds),
        np.tile(answers.image_Q, n_seeds),
        n_permutations=n_permutations,
    )
    low, high = bootstrap_interval(answers.hit_SQ.mean(axis=0), answers.image_Q, small_sample=True)
    return Score(value=value, low=low, high=high, chance=float(share_SQ.mean()), p=p, n=len(images_U))


def drop(shared: Answers, apart: Answers, *, is_matched: bool, n_resamples: int = 10_000) -> Drop:
    """Compare models with and without a leak on the queries they have in common.

    Any two models differ by their seeds, so images and seeds are both a sample: the interval is the wider one of those
    over images (`compare_pair`) and over both (`seed_components`), p the sign-flip test over images, or 1 where the
    interval does not exclude zero. Of one seed a loss cannot be told from a poorer start: p = 1.

    Raises:
        InputError: fewer than two images in common.
    """
    common = apart.query_Q[np.isin(apart.query_Q, shared.query_Q)]
    shared, apart = shared.of(common), apart.of(common)
    shared_Q, apart_Q = shared.hit_SQ.mean(axis=0), apart.hit_SQ.mean(axis=0)
    found = compare_pair(apart_Q, shared_Q, apart.image_Q, n_resamples=n_resamples)
    low, high, p = found.low, found.high, 1.0
    n_seeds = min(len(shared.hit_SQ), len(apart.hit_SQ))
    if n_seeds > 1:
        difference_SQ = apart.hit_SQ[:n_seeds].astype(float) - shared.hit_SQ[:n_seeds]
        images_U, index_Q = np.unique(apart.image_Q, return_inverse=True)
        sum_SU = np.stack([np.bincount(index_Q, weights=row, minlength=len(images_U)) for row in difference_SQ])
        over_both = seed_components(sum_SU / np.bincount(index_Q))
        low, high = min(low, over_both.low), max(high, over_both.high)
        p = found.p / 2 if high < 0 else 1.0
    return Drop(
        shared=against_chance(shared, n_permutations=n_resamples),
        apart=against_chance(apart, n_permutations=n_resamples),
        difference=found.difference,
        low=low,
        high=high,
        p=p,
        is_matched=is_matched,
    )


def crossed(parts: Sequence[Answers], fold_Q: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0) -> Drop:
    """Compare every query answered by the models that were kept apart from its fold, and by those that were not.

        T(σ) = sum_sf hits of the model of (seed s, fold f) among the queries of fold σ_s(f)
        p = (1 + #{σ : T(σ) <= T(identity)}) / (1 + n_permutations)        σ_s a permutation of the folds per seed

    Each model is its own control, and each query: how good a model is and how easy a fold's queries are enters T for
    every σ alike. If it does not matter which blocks were left out, all σ are as likely as the true one.

    Args:
        parts: the answers of each fold's models to the same queries.
        fold_Q: the fold each query lies in, -1 for queries that take no part.
        n_permutations, seed: of the folds.
    Raises:
        InputError: fewer than two images, or a fold without queries.
    """
    kept = np.flatnonzero(fold_Q >= 0)
    n_folds, fold_Q = len(parts), fold_Q[kept]
    if len(np.unique(fold_Q)) < n_folds:
        raise InputError(f"the queries lie in {len(np.unique(fold_Q))} of {n_folds} folds; use more data")
    first = parts[0].of(parts[0].query_Q[kept])
    predicted_FSQ = np.stack([part.of(first.query_Q).predicted_SQ for part in parts])
    hit_FSQ = predicted_FSQ == first.truth_Q
    sum_SFG = np.stack([hit_FSQ[:, :, fold_Q == fold].sum(axis=-1) for fold in range(n_folds)], axis=-1).swapaxes(0, 1)
    n_seeds = len(sum_SFG)
    rng = np.random.default_rng(seed)
    order_RSG = rng.permuted(np.tile(np.arange(n_folds), (n_permutations, n_seeds, 1)), axis=-1)
    null_R = sum_SFG[np.arange(n_seeds)[:, None], order_RSG, np.arange(n_folds)].sum(axis=(1, 2))
    observed = np.trace(sum_SFG, axis1=1, axis2=2).sum()
    others = [[part for part in range(n_folds) if part != fold] for fold in range(n_folds)]
    queries = np.arange(len(fold_Q))
    apart_SQ = predicted_FSQ[fold_Q, :, queries].T
    shared_PQ = np.concatenate(
        [predicted_FSQ[np.array(others)[fold_Q, place], :, queries].T for place in range(n_folds - 1)]
    )
    apart, shared = (Answers(**(vars(first) | {"predicted_SQ": one})) for one in (apart_SQ, shared_PQ))
    difference_Q = apart.hit_SQ.mean(axis=0) - shared.hit_SQ.mean(axis=0)
    low, high = bootstrap_interval(difference_Q, first.image_Q, small_sample=True)
    return Drop(
        shared=against_chance(shared, n_permutations=n_permutations),
        apart=against_chance(apart, n_permutations=n_permutations),
        difference=float(difference_Q.mean()),
        low=low,
        high=high,
        p=(1 + int((null_R <= observed).sum())) / (1 + n_permutations),
        is_matched=True,
    )


def holm(p_by_name: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for each other: p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_by_name, key=lambda name: p_by_name[name])):
        largest = max(largest, min(1.0, (len(p_by_name) - place) * p_by_name[name]))
        corrected[name] = largest
    return corrected


def selection(score_SP: np.ndarray) -> Selection:
    """Compare rules for choosing the pass from the scores of every seed after every pass on the same pictures.

    fixed: mean_s a_sP     chosen: mean_s max_p a_sp     by other seeds: mean_s a_s,p(s), p(s) = argmax_p mean_r!=s a_rp
    """
    n_seeds, n_passes = score_SP.shape
    seeds = np.arange(n_seeds)
    others = None
    if n_seeds > 1:
        pass_S = ((score_SP.sum(axis=0) - score_SP) / (n_seeds - 1)).argmax(axis=1)
        others = float(score_SP[seeds, pass_S].mean())
    return Selection(
        fixed=float(score_SP[:, -1].mean()),
        by_other_seeds=others,
        chosen=float(score_SP.max(axis=1).mean()),
        n_passes=n_passes,
    )


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.1f} %"


def p_text(p: float) -> str:
    """Write a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
