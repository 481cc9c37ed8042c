"""What is asked of a model's channels; apart from the analysis, so that a job knows its flags without loading torch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """What is asked of a model's channels."""

    draws: int = 4
    """Times every replacement by noise is drawn; errors over draws need 2."""
    cutoff_hz: float = 100.0
    """Highest rate in the noise; at or above half the sampling rate it is white."""
    intervals_s: tuple[tuple[float, float], ...] | None = None
    """Stretches of time to look at alone, pairs of from and to after onset; by default Palazzo's (0 0.08 0.08 0.16
    0.16 0.32 0.32 0.44) as far as they lie in the segments."""
    views: bool = True
    """Also retrieval from regions, bands and windows of time alone, and without them, as NICE does."""
    window_step_s: float = 0.05
    """Step of growing, shrinking and sliding windows."""
    window_width_s: float = 0.1
    """Width of sliding windows."""
    regions: Path | None = None
    """CSV with the columns region and channel; by default regions are taken from 10-05 names."""
    categories: Path | None = None
    """CSV with the columns label_name and category: importance per semantic category."""
    seed: int = 0
    """Of the noise and of the signs that clusters are tested with."""

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("draws", self.draws >= 1, "at least 1"),
            ("cutoff_hz", 0 < self.cutoff_hz < math.inf, "a rate above 0 Hz"),
            ("window_step_s", self.window_step_s > 0, "seconds above 0"),
            ("window_width_s", self.window_width_s > 0, "seconds above 0"),
            ("seed", 0 <= self.seed < 2**64, "0 to 2^64 - 1"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        for interval_s, times in Counter(self.intervals_s or ()).items():
            if times > 1:
                raise InputError(f"interval {interval_s[0]:g} to {interval_s[1]:g} s is given twice; give it once")
