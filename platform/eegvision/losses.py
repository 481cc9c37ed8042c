"""Losses on the two embeddings of a batch: row i of `eeg_BD` was evoked by the image of row i of `image_BD`.

Common to all: sums run in float32 or better whatever the embeddings' precision; a batch with nothing to compare gives
0, connected to the graph. Common to those that contrast: images repeated in a batch are never each other's negatives
(`image_ids_B` says which rows share one). Without `image_ids_B` every row counts as another image: then repeats are
negatives, as in ATM's code.
Axes: B rows of the batch, D embedding, K classes; S[i,j] = F(e_i, v_j) = φ(e_i) · θ(v_j), the compatibility.
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
    negatives: Literal["random", "semi-hard", "all"] = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Triplet loss on compatibility: an EEG should match its own image better than another one.

        mean over i of  max(0, F(e_i, v_j) - F(e_i, v_i) + margin)

    `random` takes for each i one j drawn uniformly from the rows that show another image; `all` takes the mean over
    those j, which is the expected value of `random`. `semi-hard` takes the j of largest F(e_i, v_j) among those with
    F(e_i, v_j) < F(e_i, v_i), where a margin is what makes them count; for an i without such j, whose own image is the
    worst of all, the j of smallest F(e_i, v_j), the mistake that is mended first.
    Source: Palazzo et al., arXiv 1810.10974, Eq. 2, which has no margin; how j is chosen is ours, and `semi-hard`
    after Schroff et al. 2015 (FaceNet), Sect. 3.2.

    Args:
        eeg_BD, image_BD: embeddings, B >= 1.
        image_ids_B: integers, equal where rows show the same image.
        margin: in units of F, >= 0.
        generator: a CPU generator, whatever the embeddings' device, so that the draw is the same on each.
    """
    score_BB, negative_BB = _scores(eeg_BD, image_BD, image_ids_B)
    if negatives == "all":
        weight_BB = negative_BB.to(score_BB.dtype) / negative_BB.sum(1, keepdim=True).clamp(min=1)
    else:
        is_random = negatives == "random"
        chosen_B1 = _drawn(negative_BB, generator) if is_random else _semi_hard(score_BB, negative_BB)
        weight_BB = torch.zeros_like(score_BB).scatter(1, chosen_B1, 1.0) * negative_BB
    hinge_BB = F.relu(score_BB - score_BB.diagonal()[:, None] + margin)
    return (weight_BB * hinge_BB).sum() / len(eeg_BD)


def info_nce(
    eeg_BD: Tensor,
    image_BD: Tensor,
    *,
    scale: Tensor | float,
    direction: Literal["both", "eeg-to-image"] = "both",
    image_ids_B: Tensor | None = None,
) -> Tensor:
    """InfoNCE: each EEG should pick its image out of the batch and, in `both` directions, each image its EEG.

        both:          mean over i of  1/2 [ -log softmax_j(s S[i,j])_i  -  log softmax_j(s S[j,i])_i ]
        eeg-to-image:  mean over i of  -log softmax_j(s S[i,j])_i

    Other rows that show the same image are left out of the denominators: neither positives nor negatives.
    Source: Radford et al. 2021 (CLIP), as used by NICE (Song et al., ICLR 2024); one direction: NeuralBench.

    Args:
        eeg_BD, image_BD: embeddings, of unit length as published.
        scale: s, the inverse temperature.
    """
    score_BB, negative_BB = _scores(eeg_BD, image_BD, image_ids_B)
    own_B = torch.arange(len(eeg_BD), device=eeg_BD.device)
    is_left_out_BB = ~negative_BB & (own_B[:, None] != own_B)
    logit_BB = (scale * score_BB).masked_fill(is_left_out_BB, -torch.inf)
    if direction == "eeg-to-image":
        return F.cross_entropy(logit_BB, own_B)
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


def similarity_scale(p: Tensor, form: Literal["exp", "raw", "softplus"]) -> Tensor:
    """Return the factor s on compatibilities from a number p that begins at ln(1/τ), τ the temperature.

    exp:       s = e^p             begins at 1/τ, so τ = 0.07 gives 14.29     CLIP; fixed in NICE
    raw:       s = p               begins at ln(1/τ):  2.66                   ATM's code
    softplus:  s = ln(1 + e^p)     begins at ln(1 + 1/τ):  2.73               UBP's code
    """
    return {"exp": torch.exp, "raw": torch.clone, "softplus": F.softplus}[form](p)


def pair_mse(eeg_BD: Tensor, image_BD: Tensor) -> Tensor:
    """Mean squared difference of paired embeddings, 1/(B D) sum_id (φ(e_i)_d - θ(v_i)_d)^2."""
    eeg_BD, image_BD = _paired(eeg_BD, image_BD)
    return F.mse_loss(eeg_BD, image_BD)


def centre_mse(eeg_BD: Tensor, image_BD: Tensor, label_B: Tensor) -> Tensor:
    """Mean squared difference between EEG embeddings and the centres of their classes.

        1/(n D) sum_id (φ(e_i)_d - c_id)^2,    c_i = mean over j with label_j = label_i of θ(v_j)

    over the n rows that have a class. Centres are means of the rows of this batch, not made unit length, and gradients
    flow through them into the images.

    Args:
        label_B: integers; below 0 where a row has no class.
    """
    eeg_BD, image_BD = _paired(eeg_BD, image_BD)
    _check_rows(label_B, "label_B", len(eeg_BD))
    has_class_B1 = (label_B >= 0)[:, None]
    same_BB = ((label_B[:, None] == label_B) & has_class_B1).to(eeg_BD.dtype)
    with torch.autocast(eeg_BD.device.type, enabled=False):
        centre_BD = same_BB @ image_BD / same_BB.sum(1, keepdim=True).clamp(min=1)
    square_BD = (eeg_BD - centre_BD).square() * has_class_B1
    return square_BD.sum() / (has_class_B1.sum() * eeg_BD.shape[1]).clamp(min=1)


def classification(logit_BK: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy of a classifier, -1/n sum_i log softmax_k(logit_ik) at k = label_i.

    Over the n rows that have a class (`label_B` >= 0); the others take no part.
    """
    if logit_BK.ndim != 2:
        raise InputError(f"logits have shape {tuple(logit_BK.shape)}; expected [B, K], one column per class")
    _check_rows(label_B, "label_B", len(logit_BK))
    logit_BK = logit_BK.to(torch.promote_types(logit_BK.dtype, torch.float32))
    has_class_B = label_B >= 0
    total = F.cross_entropy(logit_BK, label_B.where(has_class_B, -1), ignore_index=-1, reduction="sum")
    return total / has_class_B.sum().clamp(min=1)


def _scores(eeg_BD: Tensor, image_BD: Tensor, image_ids_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return compatibilities [B, B] and where column j is a negative of row i: it shows another image."""
    eeg_BD, image_BD = _paired(eeg_BD, image_BD)
    with torch.autocast(eeg_BD.device.type, enabled=False):  # or the product would be bfloat16 again
        score_BB = eeg_BD @ image_BD.T
    if image_ids_B is None:
        image_ids_B = torch.arange(len(eeg_BD), device=eeg_BD.device)
    _check_rows(image_ids_B, "image_ids_B", len(eeg_BD))
    ids_B = image_ids_B.to(eeg_BD.device)
    return score_BB, ids_B[:, None] != ids_B


def _drawn(negative_BB: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one negative [B, 1] for each row; any column where it has none."""
    draw_B1 = torch.rand(len(negative_BB), 1, generator=generator, dtype=torch.float64).to(negative_BB.device)
    k_B1 = (draw_B1 * negative_BB.sum(1, keepdim=True)).long()
    # The k-th negative of a row stands where the running count first reaches k + 1.
    return torch.searchsorted(negative_BB.cumsum(1), k_B1 + 1).clamp(max=len(negative_BB) - 1)


def _semi_hard(score_BB: Tensor, negative_BB: Tensor) -> Tensor:
    """Return the semi-hard negative [B, 1] of each row; any column where it has no negative."""
    below_BB = negative_BB & (score_BB < score_BB.diagonal()[:, None])
    hardest_B1 = score_BB.masked_fill(~below_BB, -torch.inf).argmax(1, keepdim=True)
    easiest_B1 = score_BB.masked_fill(~negative_BB, torch.inf).argmin(1, keepdim=True)
    return torch.where(below_BB.any(1, keepdim=True), hardest_B1, easiest_B1)


def _paired(eeg_BD: Tensor, image_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32 or better, or raise where they are no pairs."""
    if eeg_BD.shape != image_BD.shape or eeg_BD.ndim != 2:
        raise InputError(
            f"embeddings have shapes {tuple(eeg_BD.shape)} (EEG) and {tuple(image_BD.shape)} (images); "
            "expected [B, D] twice, row i of both from one segment and its image"
        )
    dtype = torch.promote_types(eeg_BD.dtype, torch.float32)
    return eeg_BD.to(dtype), image_BD.to(dtype)


def _check_rows(value_B: Tensor, name: str, n_rows: int) -> None:
    if value_B.shape != (n_rows,):
        raise InputError(f"{name} has shape {tuple(value_B.shape)} for a batch of {n_rows} rows")
