"""Losses on the two embeddings of a batch: row i of `eeg_BD` was evoked by the image of row i of `image_BD`.

Common to all: images repeated in a batch are never each other's negatives (`image_ids_B` says which rows share one;
without it every row counts as another image); sums run in float32 or better whatever the embeddings' precision;
a batch that holds one image alone has nothing to contrast and gives 0, connected to the graph.
Axes: B rows of the batch, D embedding; S[i,j] = F(e_i, v_j) = φ(e_i) · θ(v_j), the compatibility.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eegvision.vocab import InputError


def triplet(
    eeg_BD: Tensor,
    image_BD: Tensor,
    *,
    image_ids_B: Tensor | None = None,
    margin: float = 0.0,
    negatives: Literal["random", "all"] = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Triplet loss on compatibility: an EEG should match its own image better than another one.

        mean over i of  max(0, F(e_i, v_j) - F(e_i, v_i) + margin)

    `random` takes for each i one j drawn uniformly from the rows that show another image; `all` takes the mean over
    those j, which is the expected value of `random`.
    Source: Palazzo et al., arXiv 1810.10974, Eq. 2, which has no margin; how j is drawn is ours.

    Args:
        eeg_BD, image_BD: embeddings, B >= 1.
        image_ids_B: integers, equal where rows show the same image.
        margin: in units of F, >= 0.
        generator: a CPU generator, whatever the embeddings' device, so that the draw is the same on each.
    """
    score_BB, negative_BB = _scores(eeg_BD, image_BD, image_ids_B)
    n_negatives_B1 = negative_BB.sum(1, keepdim=True)
    if negatives == "all":
        weight_BB = negative_BB.to(score_BB.dtype) / n_negatives_B1.clamp(min=1)
    else:
        # The k-th negative of a row stands where the running count first reaches k + 1.
        draw_B1 = torch.rand(len(eeg_BD), 1, generator=generator, dtype=torch.float64).to(score_BB.device)
        k_B1 = (draw_B1 * n_negatives_B1).long()
        chosen_B1 = torch.searchsorted(negative_BB.cumsum(1), k_B1 + 1).clamp(max=len(eeg_BD) - 1)
        weight_BB = torch.zeros_like(score_BB).scatter(1, chosen_B1, 1.0) * negative_BB
    hinge_BB = F.relu(score_BB - score_BB.diagonal()[:, None] + margin)
    return (weight_BB * hinge_BB).sum() / len(eeg_BD)


def info_nce(eeg_BD: Tensor, image_BD: Tensor, *, scale: Tensor | float, image_ids_B: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE: each EEG should pick its image out of the batch, and each image its EEG.

        mean over i of  1/2 [ -log softmax_j(s S[i,j])_i  -  log softmax_j(s S[j,i])_i ]

    Other rows that show the same image are left out of both denominators: neither positives nor negatives.
    Source: Radford et al. 2021 (CLIP), as used by NICE (Song et al., ICLR 2024).

    Args:
        eeg_BD, image_BD: embeddings, of unit length as published.
        scale: s, the inverse temperature.
    """
    score_BB, negative_BB = _scores(eeg_BD, image_BD, image_ids_B)
    own_B = torch.arange(len(eeg_BD), device=eeg_BD.device)
    is_left_out_BB = ~negative_BB & (own_B[:, None] != own_B)
    logit_BB = (scale * score_BB).masked_fill(is_left_out_BB, -torch.inf)
    return (F.cross_entropy(logit_BB, own_B) + F.cross_entropy(logit_BB.T, own_B)) / 2


def siglip(
    eeg_BD: Tensor,
    image_BD: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    image_ids_B: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss: every pair of the batch is classified on its own as belonging together or not.

        -1/B sum_ij log sigmoid(z_ij (s S[i,j] + b)),    z_ij = 1 where i = j, else -1

    Other rows that show the same image are left out, as in `info_nce`: counting them as positives would weigh an
    image by the square of its repeats. Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training.

    Args:
        eeg_BD, image_BD: embeddings, of unit length as published.
        scale, bias: s and b.
    """
    score_BB, negative_BB = _scores(eeg_BD, image_BD, image_ids_B)
    own_BB = torch.eye(len(eeg_BD), dtype=torch.bool, device=eeg_BD.device)
    logit_BB = scale * score_BB + bias
    log_likelihood_BB = F.logsigmoid(torch.where(own_BB, logit_BB, -logit_BB))
    # Positives alone would only teach the bias to grow, so without any negative nothing is counted.
    counted_BB = (own_BB | negative_BB) & negative_BB.any()
    return -(log_likelihood_BB * counted_BB).sum() / len(eeg_BD)


def _scores(eeg_BD: Tensor, image_BD: Tensor, image_ids_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return compatibilities [B, B] and where column j is a negative of row i: it shows another image."""
    if eeg_BD.shape != image_BD.shape or eeg_BD.ndim != 2:
        raise InputError(
            f"embeddings have shapes {tuple(eeg_BD.shape)} (EEG) and {tuple(image_BD.shape)} (images); "
            "expected [B, D] twice, row i of both from one segment and its image"
        )
    if image_ids_B is not None and image_ids_B.shape != eeg_BD.shape[:1]:
        raise InputError(f"image_ids_B has shape {tuple(image_ids_B.shape)} for a batch of {len(eeg_BD)} rows")
    dtype = torch.promote_types(eeg_BD.dtype, torch.float32)
    with torch.autocast(eeg_BD.device.type, enabled=False):  # or the product would be bfloat16 again
        score_BB = eeg_BD.to(dtype) @ image_BD.to(dtype).T
    ids_B = torch.arange(len(eeg_BD)) if image_ids_B is None else image_ids_B
    ids_B = ids_B.to(eeg_BD.device)
    return score_BB, ids_B[:, None] != ids_B
