"""What is asked of a model's saliency; apart from the analysis, so that a job knows its flags without loading torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """How maps are made: all that decides them beside the model and the pictures."""

    engine: Literal["fast", "exact"] = "fast"
    """`exact` removes a square around every pixel; `fast` around some, until the map agrees with exact values."""
    fidelity: float = 0.99
    """Correlation with the exact map that `fast` has to reach, in (0, 1); 0.98 takes about half as long."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers in which pictures are encoded; the error of bfloat16, which suits GPUs, is measured and reported."""
    scales_px: tuple[int, ...] | None = None
    """Sides of the squares, odd, in pixels of the model's pictures; by default Palazzo's 3 5 9 17 33 65, or in pictures
    below 224 px what is the same share of their side."""
    fill: Literal["zero", "black", "blur"] = "zero"
    """What is put in the square: ImageNet's mean colour, black, or the picture blurred."""
    normalise_scales: bool = False
    """Bring the map of every scale to [0, 1] before they are added; large squares rule the sum otherwise."""
    baseline: bool = True
    """Also maps of the likelihood of the true class: what pictures alone give, Palazzo's classifier-driven detector."""
    seed: int = 0
    """Of the pixels that `fast` is held against, the noise behind scalp maps, and pictures drawn at random."""

    def __post_init__(self) -> None:
        scales_px = self.scales_px
        for name, holds, expected in (
            ("fidelity", 0 < self.fidelity < 1, "a correlation in (0, 1)"),
            ("scales_px", scales_px is None or (scales_px and all(s > 0 and s % 2 for s in scales_px)), "odd sides"),
            ("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        if scales_px is not None and len(set(scales_px)) < len(scales_px):
            raise InputError(f"scales_px is {scales_px}; name every scale once")


@dataclass(frozen=True, kw_only=True)
class SaliencySettings(MapSettings):
    """How maps are made, which pictures get one, and what the maps are held against."""

    images: tuple[str, ...] = ()
    """Ids of the pictures; by default all of the side, or `pictures` of them."""
    pictures: int | None = None
    """At most so many pictures, drawn at random with every class as often as another."""
    detectors: Path | None = None
    """Folder with a folder per other detector, named by it, with a map per picture: IMAGE_ID.png or .jpg (grey, 8 bits)
    or .npy, of the whole picture as it was shown, at any resolution."""
    gaze_sigma: float = 0.045
    """Width (SD) of the Gaussian that makes a density of fixations, as a share of the picture's side: that of one
    degree of visual angle, if the picture takes 22."""
    shown: int = 6
    """Pictures in the figure of maps, at least 1."""
    triplets: int = 8
    """Pictures shown with saliency and scalp map side by side; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, holds, expected in (
            ("pictures", self.pictures is None or self.pictures >= 1, "at least 1"),
            ("gaze_sigma", 0 < self.gaze_sigma < 1, "a share of the side in (0, 1)"),
            ("shown", self.shown >= 1, "at least 1"),
            ("triplets", self.triplets >= 0, "at least 0"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}")
        if self.images and self.pictures is not None:
            raise InputError("images and pictures are both given; name pictures, or say how many")

    @property
    def maps(self) -> MapSettings:
        """How maps are made, without the rest."""
        return MapSettings(**{field.name: getattr(self, field.name) for field in fields(MapSettings)})
