"""Which presentations of a picture are averaged into one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Repeats:
    """Samples made of segments: the segments of sample n are rows `row_R[start_N[n]:start_N[n + 1]]`, ascending.

    `keep_N` is how many of them are averaged, 0 meaning all.
    """

    row_R: np.ndarray
    start_N: np.ndarray
    keep_N: np.ndarray

    def __len__(self) -> int:
        return len(self.keep_N)

    @property
    def first_N(self) -> np.ndarray:
        """The first segment of every sample."""
        return self.row_R[self.start_N[:-1]]

    @property
    def count_N(self) -> np.ndarray:
        """Number of segments of every sample."""
        return np.diff(self.start_N)

    @property
    def is_drawn(self) -> bool:
        """Say whether some sample is the mean of a draw, so that it differs from pass to pass."""
        return bool(((self.keep_N > 0) & (self.keep_N < self.count_N)).any())

    def of(self, samples: np.ndarray) -> Repeats:
        """Return the chosen samples in the order given."""
        counts = self.count_N[samples]
        start_N = np.concatenate([[0], np.cumsum(counts)])
        within_R = np.arange(start_N[-1]) - np.repeat(start_N[:-1], counts)
        row_R = self.row_R[np.repeat(self.start_N[samples], counts) + within_R]
        return Repeats(row_R, start_N, self.keep_N[samples])

    def drawn(self, rng: np.random.Generator) -> Repeats:
        """Return the samples with `keep_N` of their segments, drawn; all of them where there are no more."""
        sample_R = np.repeat(np.arange(len(self)), self.count_N)
        order_R = np.lexsort((rng.random(len(self.row_R)), sample_R))
        place_R = np.arange(len(order_R)) - np.repeat(self.start_N[:-1], self.count_N)
        is_kept_R = (place_R < self.keep_N[sample_R]) | (self.keep_N[sample_R] == 0)
        kept_R = np.sort(order_R[is_kept_R])  # rows ascend within a sample, so sums do not depend on the draw's order
        counts = np.bincount(sample_R[kept_R], minlength=len(self))
        return Repeats(self.row_R[kept_R], np.concatenate([[0], np.cumsum(counts)]), np.zeros_like(self.keep_N))

    def mean(self, row_n: np.ndarray, eeg_nCT: np.ndarray) -> np.ndarray:
        """Average segments into samples.

        Args:
            row_n: which segments are given, each at least once, in any order.
            eeg_nCT: their samples.
        Returns:
            float32 [N,C,T]; x_n = mean over the segments r of sample n of eeg_r.
        """
        order_n = np.argsort(row_n, kind="stable")
        place_R = order_n[np.searchsorted(row_n, self.row_R, sorter=order_n)]
        if len(self.row_R) == len(self):
            return eeg_nCT[place_R]
        sum_NCT = np.add.reduceat(eeg_nCT[place_R], self.start_N[:-1], axis=0)
        return sum_NCT / self.count_N[:, None, None].astype(np.float32)


def singles(rows: np.ndarray) -> Repeats:
    """Return every segment as a sample of its own."""
    return Repeats(np.sort(rows), np.arange(len(rows) + 1), np.ones(len(rows), dtype=np.int64))


def grouped(keys: Sequence[np.ndarray], rows: np.ndarray, keep: int) -> Repeats:
    """Group segments that are repetitions of each other.

    Args:
        keys: of every segment; those with equal keys belong together.
        rows: which segments take part.
        keep: how many repetitions are averaged: 1 takes each by itself, 0 averages all.
    Returns:
        samples in the order of their first segments.
    """
    if keep == 1:
        return singles(rows)
    rows = np.sort(rows)
    group_R = np.zeros(len(rows), dtype=np.int64)
    for key in keys:
        _, number_R = np.unique(key[rows], return_inverse=True)
        _, group_R = np.unique(group_R * (number_R.max(initial=0) + 1) + number_R, return_inverse=True)
    order_R = np.argsort(group_R, kind="stable")
    counts = np.bincount(group_R)
    found = Repeats(rows[order_R], np.concatenate([[0], np.cumsum(counts)]), np.full(len(counts), keep))
    return found.of(np.argsort(found.first_N, kind="stable"))


def joined(parts: Sequence[Repeats]) -> Repeats:
    """Return the samples of all parts, one part after the other."""
    counts = np.concatenate([part.count_N for part in parts])
    return Repeats(
        np.concatenate([part.row_R for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([part.keep_N for part in parts]),
    )
