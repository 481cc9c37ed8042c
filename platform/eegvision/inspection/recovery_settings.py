"""What is planted, and how often; apart from the work, so that a job knows its flags without loading torch."""

from __future__ import annotations

from dataclasses import dataclass

from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """Recordings whose truth is known, and how closely they are looked at."""

    seeds: int = 3
    """Recordings that are simulated, each with a trained model and both controls."""
    first_seed: int = 0
    """Of the first recording, its models and all draws; the others follow."""
    snr: float = 0.8
    """Rms of what differs between pictures over that of the noise."""
    channels: int = 64
    """Channels of the cap, 8 to 128."""
    subjects: int = 3
    """Subjects of a recording."""
    classes: int = 10
    """Classes of pictures."""
    images_per_class: int = 40
    """Pictures of each class; a fifth of them is looked at."""
    mapped: int = 30
    """Of the pictures looked at, how many have their saliency mapped, every class as often as another."""
    draws: int = 2
    """Times the noise is drawn that takes a channel's place."""

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("seeds", self.seeds >= 1, "at least 1"),
            ("first_seed", self.first_seed >= 0, "at least 0"),
            ("snr", self.snr > 0, "above 0"),
            ("images_per_class", self.images_per_class >= 10, "at least 10, two of which are looked at"),
            ("mapped", self.mapped >= 2, "at least 2"),
            ("draws", self.draws >= 1, "at least 1"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}")
