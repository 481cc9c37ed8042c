"""Which parts of a picture made it fit the EEG? Squares of several sizes are removed and the loss of fit is mapped.

Axes: N EEG segments, S scales, P places, B batch, D embedding, K classes, C EEG channels, T samples, H height, W width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eegvision.analyses.incremental import CleanPass, Rect
from eegvision.analyses.interpolated import Fast, interpolated
from eegvision.encoders.frozen import blurred
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.encoders.joint import JointModel
from eegvision.evaluate.probes import Probe
from eegvision.vocab import InputError

SCALES_PX = (3, 5, 9, 17, 33, 65)
Fill = Literal["zero", "black", "blur"]
Engine = Literal["exact", "fast", "coarse"]

_FAST: dict[str, Fast] = {"fast": Fast(), "coarse": Fast(fidelity=0.98)}

# The blur that fills has this many standard deviations in the side of a picture: 10 px of 224.
_BLURS_PER_SIDE = 22.4
_N_RESAMPLES = 1000

# How many places a CPU does in one batch, measured at 224 px: neighbours in a square of this side, as larger batches
# leave its caches and smaller ones read AlexNet's large layers too often; of places apart so many, since the rectangle
# they have in common grows. A GPU wants full batches.
_NEAR_SIDE = 6
_N_APART = 8

# Operations for every square of a picture that take less time than choosing some: 5 to 10 s of a CPU core.
_CHEAP_FLOP = 1e12


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassLikelihood:
    """The score log p(label | v) of a softmax layer on image embeddings, in place of the compatibility with EEG.

        log p(k | v) = θ(v) · w_k + b_k - log Σ_j exp(θ(v) · w_j + b_j)

    Maps of it are the classifier-driven baseline of Palazzo et al., arXiv 1810.10974, Section 7.3.

    Attributes:
        weight_DK, bias_K: of the layer, on embeddings as `JointModel.encode_image` gives them.
        label: column of the true class.
    """

    weight_DK: np.ndarray
    bias_K: np.ndarray
    label: int

    def __post_init__(self) -> None:
        shape, n_classes = np.shape(self.weight_DK), len(self.bias_K)
        if len(shape) != 2 or shape[1] != n_classes or not 0 <= self.label < n_classes:
            raise InputError(
                f"weights of shape {shape}, {n_classes} biases and label {self.label} make no softmax layer; "
                "give weight_DK [D, K], bias_K [K] and a label from 0 to K - 1"
            )

    @staticmethod
    def of_probe(probe: Probe, name: object) -> ClassLikelihood:
        """Return the score of class `name` by a probe fitted to image embeddings, its standardisation worked in.

        Raises:
            InputError: the probe does not know the class.
        """
        (number,) = np.flatnonzero(probe.class_K == name)[:1].tolist() or [-1]
        if number < 0:
            raise InputError(f"class {name!r} is not among the {len(probe.class_K)} of the probe; fit one that has it")
        weight_DK = probe.weight_DK / probe.scale_D[:, None]
        return ClassLikelihood(weight_DK=weight_DK, bias_K=probe.bias_K - probe.mean_D @ weight_DK, label=number)


Score = Tensor | ClassLikelihood


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """The numbers in which pictures are encoded; scores are float32 always.

    Attributes:
        dtype: `bfloat16` has 8 bits, and its own processing units on GPUs since 2020 and CPUs with AMX or AVX512-BF16;
            elsewhere it is slower. The error it makes is in `Saliency.agreement`.
        channels_last: keep the channels of a pixel together; None does on CPUs and in bfloat16.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}; expected 'float32' or 'bfloat16'")


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """How far summed maps agree with the exact ones in float32 at `n` pixels drawn at random, a value for each segment.

    `r_N` is the correlation, `low_N` and `high_N` its 95 % interval (bootstrap over pixels), `rmse_N` the error, in the
    unit of the score unless scales are normalised, and `max_N` the largest error over the range of the map. These
    pixels are computed apart and had no part in making the map, nor in deciding when it was good enough, so nothing is
    biased, and `r_N` can fall a little short of the target. Few pixels carry much of the error, which makes the
    interval somewhat narrow: of 100 on a random network it held the truth for 80 to 94.
    """

    r_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    rmse_N: np.ndarray
    max_N: np.ndarray
    n: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Saliency:
    """Maps of one picture, for each EEG segment or class, in the order in which they were given.

    Attributes:
        map_NHW: S of Eq. 4, float32 in [0, 1]; a map without differences is 0.
        drop_NSHW: S_σ of Eq. 3 at every scale, float32 in the score's unit; positive where removal lowers the score.
        score_N: of the whole picture, float32.
        scales_px: σ, in the order of the axis S.
        n_evaluations: suppressed pictures that were encoded, of H W S, with those for the agreement.
        agreement: with the exact maps in float32; None where these are such.
    """

    map_NHW: np.ndarray
    drop_NSHW: np.ndarray
    score_N: np.ndarray
    scales_px: tuple[int, ...]
    n_evaluations: int
    agreement: Agreement | None


@torch.no_grad()  # not inference mode: a frozen backbone that is made here must still let gradients through later
def saliency_map(
    model: JointModel,
    score: Score | Sequence[Score],
    image_3HW: Tensor,
    *,
    scales_px: Sequence[int] = SCALES_PX,
    engine: Engine | Fast = "exact",
    arithmetic: Arithmetic = Arithmetic(),
    fill: Fill = "zero",
    normalise_scales: bool = False,
    batch_size: int = 64,
    n_held_out: int = 64,
    seed: int = 0,
) -> Saliency:
    """Return how much the score falls when a square around each pixel is removed.

        S_σ(x, y) = F(e, v) - F(e, m_σ(x, y) v + (1 - m_σ(x, y)) u)           m: 0 in the σ x σ square, clipped, else 1
        S(x, y) = norm(Σ_σ S_σ(x, y)),   norm(s) = (s - min s) / (max s - min s)

    Source: Palazzo et al., arXiv 1810.10974, Eq. 3 and 4. There u = 0; which zero is not said. Here pictures are
    normalised as in batches, so that u = 0 is ImageNet's mean colour (`zero`); `black` is black, `blur` the picture
    itself, blurred by 1/22.4 of its side (mirrored edges). All EEG segments share the encoded pictures.

    The `exact` engine does every pixel, and of every encoding what the square changes (`incremental`). `fast` and
    `coarse` do the squares that tell most of the map and take the others from a Gaussian process (`interpolated`),
    until r is about 0.99 or 0.98; `Fast` asks for any other. A network and picture so small that choosing would take
    longer get every pixel from them too. Whatever is not asked to be exact in float32 comes with its agreement with
    what is. Nothing depends on `batch_size` but for rounding, which may change what is chosen; it bounds memory.

    Args:
        model: in evaluation mode, on any device.
        score: EEG segments [N, C, T] as in batches or their embeddings [N, D] (`model.encode_eeg`) for the
            compatibility F, or the likelihood of a class; or several of these, which share the encoded pictures.
        image_3HW: one picture of the model's size, normalised as in batches.
        scales_px: sides of the squares, odd.
        normalise_scales: bring every S_σ to [0, 1] before the sum, which large squares rule otherwise.
        batch_size: suppressed pictures encoded at a time.
        n_held_out: random pixels for the agreement, at least 8; never more than there are.
        seed: of these.
    Raises:
        InputError: an argument is none of these, has another size than the model's, or is not finite; or the model is
            in training mode or has no image encoder from pixels.
    """
    scales_px = _checked(model, image_3HW, scales_px, engine, fill, batch_size, n_held_out)
    device = next(model.parameters()).device
    image_3HW = image_3HW.to(device, torch.float32)
    readout, fill_3HW = _readout(model, score, device), _filling(image_3HW, fill)
    # cuDNN rounds to 10 bits unless told not to, which is more than small squares change.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        encode, layout = _encoder(model, Arithmetic(), device)
        reference = _Suppressed(encode, readout, image_3HW, fill_3HW, batch_size, layout)
        working = reference
        if arithmetic != Arithmetic():
            encode, layout = _encoder(model, arithmetic, device)
            working = _Suppressed(encode, readout, image_3HW, fill_3HW, batch_size, layout)
        if engine == "exact" or _is_cheap(model, image_3HW, len(scales_px)):
            drop_NSHW = working.every_pixel(scales_px)
        else:
            fidelity = (engine if isinstance(engine, Fast) else _FAST[engine]).fidelity
            drop_NSHW = interpolated(
                working.drop, working.shape, scales_px, fidelity, lambda maps: _weights(maps, normalise_scales), device
            )
        weight_NS = _weights(drop_NSHW, normalise_scales)
        total_NHW = np.einsum("nshw,ns->nhw", drop_NSHW, weight_NS, dtype=np.float64)
        agreement = None
        if engine != "exact" or arithmetic.dtype != "float32":
            agreement = _held_out(reference, scales_px, total_NHW, weight_NS, n_held_out, seed)
    return Saliency(
        map_NHW=_unit_range(total_NHW).astype(np.float32),
        drop_NSHW=drop_NSHW,
        score_N=reference.score_N,
        scales_px=scales_px,
        n_evaluations=reference.n_evaluations + (working.n_evaluations if working is not reference else 0),
        agreement=agreement,
    )


class _Suppressed:
    """One picture with squares removed, and what that does to the score.

    Places near each other are encoded together, since a batch shares the rectangle that is computed again.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        readout: Callable[[Tensor], Tensor],
        image_3HW: Tensor,
        fill_3HW: Tensor,
        batch_size: int,
        layout: torch.memory_format,
    ) -> None:
        self._encode, self._readout, self._layout = encode, readout, layout
        self._image_3HW, self._fill_3HW, self._batch_size = image_3HW, fill_3HW, batch_size
        self._clean = CleanPass(image_3HW[None].contiguous(memory_format=layout))
        self._score_N = readout(self._encode(self._clean.image_13HW))[0]
        self.score_N = self._score_N.cpu().numpy()
        self.shape: tuple[int, int] = (image_3HW.shape[1], image_3HW.shape[2])
        self.n_evaluations = 0

    def every_pixel(self, scales_px: tuple[int, ...]) -> np.ndarray:
        """Return S_σ [N, S, H, W]."""
        place_P2 = np.indices(self.shape).reshape(2, -1).T
        return np.stack([self.drop(place_P2, scale_px).reshape(-1, *self.shape) for scale_px in scales_px], axis=1)

    def drop(self, place_P2: np.ndarray, scale_px: int) -> np.ndarray:
        """Return S_σ at places (row, column), [N, P]."""
        is_cpu = self._image_3HW.device.type == "cpu"
        if 2 * len(place_P2) > np.prod(np.ptp(place_P2, axis=0) + 1):
            n_side = math.isqrt(self._batch_size)
            pieces = _tiles(place_P2, min(n_side, _NEAR_SIDE) if is_cpu else n_side)
        else:
            n_most = min(self._batch_size, _N_APART) if is_cpu else self._batch_size
            pieces = _halves(place_P2, np.arange(len(place_P2)), n_most)
        score_PN = torch.cat([self._scores(place_P2[piece], scale_px) for piece in pieces])
        drop_PN = (self._score_N - score_PN).cpu().numpy()
        drop_NP = np.empty((drop_PN.shape[1], len(place_P2)), dtype=np.float32)
        drop_NP[:, np.concatenate(pieces)] = drop_PN.T
        self.n_evaluations += len(place_P2)
        return drop_NP

    def _scores(self, place_B2: np.ndarray, scale_px: int) -> Tensor:
        """Return the score of the picture without the square at each place, [B, N]."""
        height, width = self.shape
        reach = scale_px // 2
        (top, left), (bottom, right) = place_B2.min(axis=0) - reach, place_B2.max(axis=0) + reach + 1
        rect = Rect(max(0, int(top)), min(height, int(bottom)), max(0, int(left)), min(width, int(right)))
        place_B211 = torch.as_tensor(place_B2, device=self._image_3HW.device)[:, :, None, None]
        row_h1 = torch.arange(rect.top, rect.bottom, device=self._image_3HW.device)[:, None]
        column_w = torch.arange(rect.left, rect.right, device=self._image_3HW.device)
        is_removed_Bhw = ((row_h1 - place_B211[:, 0]).abs() <= reach) & ((column_w - place_B211[:, 1]).abs() <= reach)
        window_B3hw = torch.where(is_removed_Bhw[:, None], self._fill_3HW[rect.cut], self._image_3HW[rect.cut])
        window_B3hw = window_B3hw.contiguous(memory_format=self._layout)
        return self._readout(self._clean.encode(self._encode, window_B3hw, rect))


def _is_cheap(model: JointModel, image_3HW: Tensor, n_scales: int) -> bool:
    """Say whether choosing squares would take longer than doing all of them, going by additions and multiplications."""
    with FlopCounterMode(display=False) as counter:
        model.encode_image(image_3HW[None])
    return counter.get_total_flops() * image_3HW[0].numel() * n_scales < _CHEAP_FLOP


def _tiles(place_P2: np.ndarray, n_side: int) -> list[np.ndarray]:
    """Return which places lie in each square of so many rows and columns."""
    tile_P2 = place_P2 // n_side
    order_P = np.lexsort((place_P2[:, 1], place_P2[:, 0], tile_P2[:, 1], tile_P2[:, 0]))
    return np.split(order_P, np.flatnonzero(np.diff(tile_P2[order_P], axis=0).any(axis=1)) + 1)


def _halves(place_P2: np.ndarray, index: np.ndarray, n_most: int) -> list[np.ndarray]:
    """Return `index` of places in parts of at most so many, cut across the longer side again and again."""
    n_parts = math.ceil(len(index) / n_most)
    if n_parts == 1:
        return [index]
    axis = np.ptp(place_P2[index], axis=0).argmax()
    order = index[np.argsort(place_P2[index, axis], kind="stable")]
    cut = len(index) * (n_parts // 2) // n_parts
    return _halves(place_P2, order[:cut], n_most) + _halves(place_P2, order[cut:], n_most)


def _encoder(
    model: JointModel, arithmetic: Arithmetic, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], torch.memory_format]:
    """Return the function from pictures to embeddings, float32, and how the pictures are to lie in memory."""
    is_short = arithmetic.dtype == "bfloat16"
    # CPUs convolve faster where the channels of a pixel lie together, and GPUs in bfloat16.
    is_last = arithmetic.channels_last
    layout = torch.channels_last if (is_last if is_last is not None else is_short or device.type == "cpu") else None
    layout = layout or torch.contiguous_format
    if not is_short:
        return model.encode_image, layout
    # autocast would shorten the weights again in every pass; what is short already it leaves alone.
    short = copy.deepcopy(model)
    for part in (short.image, short.backbone if model.config.image.is_frozen else None):
        for module in part.modules() if part is not None else ():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)

    def encode(image_B3HW: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return short.encode_image(image_B3HW)

    return encode, layout


def _held_out(
    reference: _Suppressed,
    scales_px: tuple[int, ...],
    total_NHW: np.ndarray,
    weight_NS: np.ndarray,
    n_held_out: int,
    seed: int,
) -> Agreement:
    """Return how summed maps agree with exact ones at random pixels."""
    n_pixels = math.prod(reference.shape)
    n = min(n_held_out, n_pixels)
    place_P2 = np.stack(
        np.unravel_index(np.random.default_rng(seed).choice(n_pixels, n, replace=False), reference.shape), axis=1
    )
    exact_NSP = np.stack([reference.drop(place_P2, scale_px) for scale_px in scales_px], axis=1)
    exact_NP = np.einsum("nsp,ns->np", exact_NSP, weight_NS, dtype=np.float64)
    return _agreement(total_NHW[:, place_P2[:, 0], place_P2[:, 1]], exact_NP, np.ptp(total_NHW, axis=(1, 2)))


def _agreement(found_NP: np.ndarray, exact_NP: np.ndarray, range_N: np.ndarray) -> Agreement:
    n = exact_NP.shape[1]
    # Always the same draws: the interval of a map must not depend on what was computed before.
    drawn_RP = np.random.default_rng(0).integers(0, n, (_N_RESAMPLES, n))
    resampled_NR = _correlation(found_NP[:, drawn_RP], exact_NP[:, drawn_RP])
    low_N, high_N = np.quantile(resampled_NR, [0.025, 0.975], axis=1)
    error_NP = np.abs(found_NP - exact_NP)
    return Agreement(
        r_N=_correlation(found_NP, exact_NP),
        low_N=low_N,
        high_N=high_N,
        rmse_N=np.sqrt((error_NP**2).mean(axis=1)),
        max_N=error_NP.max(axis=1) / np.where(range_N > 0, range_N, 1),
        n=n,
    )


def _correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Pearson's r over the last axis; of what is constant 1 where both are the same, else 0."""
    is_same = (left == right).all(axis=-1)
    left, right = (value - value.mean(axis=-1, keepdims=True) for value in (left, right))
    size = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    r = (left * right).sum(axis=-1) / np.where(size > 0, size, 1)
    return np.where(size > 0, r.clip(-1, 1), is_same)


def _weights(drop_NSHW: np.ndarray, normalise_scales: bool) -> np.ndarray:
    """Return the factor of each scale in the sum, [N, S]; what is subtracted does not matter after Eq. 4's norm."""
    if not normalise_scales:
        return np.ones(drop_NSHW.shape[:2])
    range_NS = np.ptp(drop_NSHW.astype(np.float64), axis=(2, 3))
    return np.where(range_NS > 0, 1 / np.where(range_NS > 0, range_NS, 1), 0)


def _unit_range(map_NHW: np.ndarray) -> np.ndarray:
    low_N11, high_N11 = (extreme(map_NHW, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    return (map_NHW - low_N11) / np.where(high_N11 > low_N11, high_N11 - low_N11, 1)


def _filling(image_3HW: Tensor, fill: Fill) -> Tensor:
    """Return what a removed pixel is replaced by, [3, H, W]."""
    if fill == "zero":
        return torch.zeros_like(image_3HW)
    if fill == "black":
        mean_3, std_3 = image_3HW.new_tensor(IMAGENET_MEAN), image_3HW.new_tensor(IMAGENET_STD)
        return (-mean_3 / std_3)[:, None, None].expand_as(image_3HW)
    return blurred(image_3HW[None], min(image_3HW.shape[1:]) / _BLURS_PER_SIDE, 0.0)[0]


def _readout(model: JointModel, score: Score | Sequence[Score], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from image embeddings [B, D] to scores [B, N]."""
    scores = [score] if isinstance(score, Tensor | ClassLikelihood) else score
    if not scores:
        raise InputError("no score is given; give EEG segments, their embeddings or the likelihood of a class")
    parts = [
        _likelihood(model, one, device) if isinstance(one, ClassLikelihood) else _compatibility(model, one, device)
        for one in scores
    ]
    return lambda image_BD: torch.cat([part(image_BD) for part in parts], dim=1)


def _likelihood(model: JointModel, score: ClassLikelihood, device: torch.device) -> Callable[[Tensor], Tensor]:
    n_embed = model.config.image.embed_dim
    if len(score.weight_DK) != n_embed:
        raise InputError(
            f"weight_DK is for embeddings of {len(score.weight_DK)} dimensions, those of the model have {n_embed}; "
            "fit the probe to its embeddings"
        )
    weight_DK = torch.as_tensor(score.weight_DK, dtype=torch.float32, device=device)
    bias_K = torch.as_tensor(score.bias_K, dtype=torch.float32, device=device)
    label = score.label
    return lambda image_BD: torch.log_softmax(image_BD @ weight_DK + bias_K, dim=1)[:, label, None]


def _compatibility(model: JointModel, eeg: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    n_embed = model.config.image.embed_dim
    if eeg.ndim not in (2, 3) or len(eeg) == 0 or not torch.isfinite(eeg).all():
        raise InputError(
            f"EEG of shape {tuple(eeg.shape)} given, or values that are not finite; "
            "expected segments [N, C, T] or their embeddings [N, D]"
        )
    eeg = eeg.to(device, torch.float32)
    eeg_ND = model.encode_eeg(eeg) if eeg.ndim == 3 else eeg
    if eeg_ND.shape[1] != n_embed:
        raise InputError(
            f"EEG embeddings of {eeg_ND.shape[1]} dimensions given, those of the model have {n_embed}; "
            "take them from the encode_eeg of the same model"
        )
    return lambda image_BD: image_BD @ eeg_ND.T


def _checked(
    model: JointModel,
    image_3HW: Tensor,
    scales_px: Sequence[int],
    engine: object,
    fill: str,
    batch_size: int,
    n_held_out: int,
) -> tuple[int, ...]:
    if model.training:
        raise InputError("the model is in training mode, in which pictures change each other; call model.eval() first")
    if image_3HW.ndim != 3 or image_3HW.shape[0] != 3 or not torch.isfinite(image_3HW).all():
        raise InputError(
            f"a picture of shape {tuple(image_3HW.shape)} given, or values that are not finite; expected one "
            "[3, H, W], normalised as in batches"
        )
    # A frozen network may know its size itself.
    side_px = model.backbone.size_px if model.config.image.is_frozen else model.config.image.input_px
    if tuple(image_3HW.shape[1:]) != (side_px, side_px):
        raise InputError(
            f"a picture of {image_3HW.shape[1]} x {image_3HW.shape[2]} px given, but the model is for {side_px} x "
            f"{side_px}; resize it as for training"
        )
    scales = tuple(int(scale_px) for scale_px in scales_px)
    if not scales or len(set(scales)) < len(scales) or any(scale < 1 or scale % 2 == 0 for scale in scales):
        raise InputError(f"scales are {scales}; give at least one side of a square, all odd and different")
    if fill not in ("zero", "black", "blur"):
        raise InputError(f"fill is {fill!r}; expected 'zero', 'black' or 'blur'")
    if engine != "exact" and engine not in _FAST and not isinstance(engine, Fast):
        raise InputError(f"engine is {engine!r}; expected 'exact', 'fast', 'coarse' or Fast(...)")
    if batch_size < 1 or n_held_out < 8:
        raise InputError(
            f"batch_size is {batch_size} and n_held_out {n_held_out}; give at least 1 picture and 8 pixels"
        )
    return scales
