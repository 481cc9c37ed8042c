"""What is planted in simulated recordings, as plain arrays, and what its scores are called.

Axes: C channels, Q pictures, L low-level properties, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from eegvision.ingest import responses, stimuli
from eegvision.stream import RESIZE

Arm = Literal["trained", "untrained", "shuffled"]

ARMS: tuple[Arm, ...] = ("trained", "untrained", "shuffled")
BEFORE_S, EARLY_S, LATE_S = (0.0, 0.08), (0.08, 0.16), (0.16, 0.32)
"""Before anything planted answers, the occipital group's interval, and the temporal group's."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something planted: what a score of it is called, its measure, its value by chance, and what it says."""

    key: str
    title: str
    measure: str
    chance: float
    says: str


QUANTITIES = (
    Quantity(key="saliency/s-auc", title="Saliency on objects, s-AUC", measure="s-AUC", chance=0.5,
             says="a map is higher on its picture's object than at places of other pictures' objects"),
    Quantity(key="saliency/nss", title="Saliency on objects, NSS", measure="NSS (SD)", chance=0.0,
             says="mean of the map on the object, in standard deviations of the map"),
    Quantity(key="channels/all", title="Channels: all sources", measure="rank correlation", chance=0.0,
             says="rank correlation of channel importance with what all sources project to the channels"),
    Quantity(key="channels/early", title="Channels, 80-160 ms: occipital", measure="rank correlation", chance=0.0,
             says="the same in the early interval, with the occipital sources alone"),
    Quantity(key="channels/late", title="Channels, 160-320 ms: temporal", measure="rank correlation", chance=0.0,
             says="the same in the late interval, with the temporal sources alone"),
    Quantity(key="intervals/early", title="Interval 80-160 ms above 0-80 ms", measure="probability", chance=0.5,
             says="probability that the interval contributes more to a picture than the time before any response"),
    Quantity(key="intervals/late", title="Interval 160-320 ms above 0-80 ms", measure="probability", chance=0.5,
             says="the same for the late interval"),
    Quantity(key="association/time",
             title="Class maps go with the late interval", measure="rank correlation", chance=0.0,
             says="rank correlation, over feature maps, of class selectivity with association late less early"),
    Quantity(key="association/scalp",
             title="Class maps go with temporal channels", measure="rank correlation", chance=0.0,
             says="rank correlation, over channels, of class maps' less low-level maps' association with temporal less "
                  "occipital projections"),
)  # fmt: skip


def projections(truth: Mapping[str, Any], channels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return what every group of sources projects to the channels, and all of them with their shares of the response.

    `all` is the rms over groups, each of the rms over channels that its share says: what differs between pictures.
    """
    found = {
        name: np.array([group["projection"][channel] for channel in channels])
        for name, group in truth["groups"].items()
    }
    share = {group.name: group.share for group in responses.GROUPS}
    together = np.sqrt(sum((share[name] * sized(own_C)) ** 2 for name, own_C in found.items()))
    return found | {"all": together}


def sized(projection_C: np.ndarray) -> np.ndarray:
    """Return a projection with an rms of 1 over channels."""
    return projection_C / np.sqrt((projection_C**2).mean())


def masks_of(truth: Mapping[str, Any], image_ids: list[str], size_px: int) -> dict[str, np.ndarray]:
    """Return where the object of each picture is, in pixels of the central crop that models see."""
    side_px, found = round(RESIZE * size_px), {}
    margin = round((side_px - size_px) / 2)
    for image_id in image_ids:
        mask_HH = stimuli.object_mask(truth["images"][image_id], truth["options"]["image_px"])
        resized = Image.fromarray(mask_HH.astype(np.float32)).resize((side_px, side_px), Image.Resampling.BILINEAR)
        cut = slice(margin, margin + size_px)
        found[image_id] = np.asarray(resized)[cut, cut] > 0.5
    return found


def low_level(truth: Mapping[str, Any], image_ids: list[str]) -> np.ndarray:
    """Return the low-level features of every picture's object, its place, and their products, [Q, L]."""
    images = [truth["images"][image_id] for image_id in image_ids]
    feature_QL = np.array([list(image["features"].values()) for image in images])
    place_Q2 = np.array([(image["row"], image["column"]) for image in images])
    return np.column_stack([feature_QL, place_Q2, feature_QL * place_Q2[:, :1], feature_QL * place_Q2[:, 1:]])
