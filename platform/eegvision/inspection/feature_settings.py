"""What is asked of feature maps and of embeddings; apart from the analyses, so that a job need not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class AssociationSettings:
    """What is asked of a model's feature maps."""

    layers: tuple[str, ...] | None = None
    """Modules of the image network; by default the layer of its first maps and every block."""
    intervals_s: tuple[tuple[float, float], ...] | None = None
    """Stretches of time to look at alone, pairs of from and to after onset; by default Palazzo's (0 0.08 0.08 0.16
    0.16 0.32 0.32 0.44) as far as they lie in the segments."""
    draws: int = 4
    """Times every replacement by noise is drawn."""
    cutoff_hz: float = 100.0
    """Highest rate in the noise; at or above half the sampling rate it is white."""
    pictures: int | None = None
    """Look at so many pictures, drawn at random; by default at all of the side."""
    visuals: int = 4
    """Maps of each layer that are visualised by activation maximisation: those most associated with a channel."""
    steps: int = 256
    """Steps of activation maximisation."""
    seed: int = 0
    """Of the noise, the pictures drawn, and the visualisations."""

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("layers", self.layers is None or len(self.layers) > 0, "at least one name"),
            ("pictures", self.pictures is None or self.pictures >= 1, "at least 1"),
            ("visuals", self.visuals >= 0, "at least 0"),
            ("steps", self.steps >= 1, "at least 1"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class SemanticSettings:
    """What is asked of a model's embeddings."""

    categories: Path | None = None
    """CSV with the columns label_name and category: classes are compared by category; without it pictures by class."""
    permutations: int = 10_000
    """Times categories are traded to tell whether they show."""
    seed: int = 0
    """Of the permutations."""

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise InputError(f"permutations is {self.permutations!r}; expected at least 1")
