"""The objective of a run on one (global) batch: losses and further terms, put together as the configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from eegvision.config import LossConfig
from eegvision.losses import centre_mse, classification, info_nce, pair_mse, siglip, triplet
from eegvision.vocab import InputError

if TYPE_CHECKING:
    from eegvision.encoders.joint import Pairs


def batch_loss(
    config: LossConfig,
    outputs: Pairs | Tensor,
    *,
    image_ids_B: Tensor,
    label_B: Tensor,
    text_BF: Tensor | None = None,
    seed: int,
) -> Tensor:
    """Return the configured objective of what a model gave for a batch.

        joint:                (1 - w) L(φ, θ) + w L(φ, text) + a MSE(φ, θ) + b MSE(φ, centre of θ over the class)
        one encoder alone:    cross-entropy of its classifier

    w, a, b are `text_weight`, `mse_weight`, `centre_weight`. In L(φ, text) the text of a row takes the place of its
    image, of unit length where images are; rows with equal texts are each other's repeats there, whatever their
    images. Source of the mix: ATM's code (w = 0.01).

    Args:
        config: resolved.
        outputs: of `JointModel`, embeddings as they enter the loss or logits [B, K].
        image_ids_B: integers, equal where rows show the same image.
        label_B: classes, -1 where a row has none.
        text_BF: features of a text for each row, F = D; needed where w > 0.
        seed: draws the triplets' negatives.
    Raises:
        InputError: texts are wanted and absent, or of another size than the embeddings.
    """
    if isinstance(outputs, Tensor):
        return classification(outputs, label_B)
    loss = _contrast(config, outputs, image_ids_B, seed)
    if config.text_weight:
        text_BD, text_ids_B = _texts(config, text_BF, outputs.image_BD)
        with_text = _contrast(config, outputs._replace(image_BD=text_BD), text_ids_B, seed)
        loss = (1 - config.text_weight) * loss + config.text_weight * with_text
    if config.mse_weight:
        loss = loss + config.mse_weight * pair_mse(outputs.eeg_BD, outputs.image_BD)
    if config.centre_weight:
        loss = loss + config.centre_weight * centre_mse(outputs.eeg_BD, outputs.image_BD, label_B)
    return loss


def _contrast(config: LossConfig, pairs: Pairs, ids_B: Tensor, seed: int) -> Tensor:
    """Return the loss that tells the pairs of a batch from its other combinations."""
    eeg_BD, image_BD, scale, bias = pairs
    image_ids_B = ids_B if config.duplicates == "left-out" else None
    if config.name == "triplet":
        assert config.margin is not None
        assert config.negatives is not None
        return triplet(
            eeg_BD,
            image_BD,
            image_ids_B=image_ids_B,
            margin=config.margin,
            negatives=config.negatives,
            generator=torch.Generator().manual_seed(seed),
        )
    if config.name == "info_nce":
        assert config.direction is not None
        return info_nce(eeg_BD, image_BD, scale=scale, direction=config.direction, image_ids_B=image_ids_B)
    assert config.name == "siglip"
    return siglip(eeg_BD, image_BD, scale=scale, bias=bias, image_ids_B=image_ids_B)


def _texts(config: LossConfig, text_BF: Tensor | None, image_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return texts in the form in which images enter the loss, and numbers that are equal where texts are."""
    if text_BF is None:
        raise InputError(
            f"loss.text_weight is {config.text_weight!r}, but the batches have no texts; give Batches their features"
        )
    if text_BF.shape != image_BD.shape:
        raise InputError(
            f"image.text has {text_BF.shape[1]} numbers per text, and embeddings have {image_BD.shape[1]}; "
            "set eeg.embed_dim and image.embed_dim to the size of the texts"
        )
    ids_B = torch.unique(text_BF, dim=0, return_inverse=True)[1]
    text_BD = text_BF.to(image_BD.dtype)
    return (F.normalize(text_BD, dim=1) if config.normalise_image else text_BD), ids_B
