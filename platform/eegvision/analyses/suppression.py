"""Which parts of a picture made it fit the EEG? Squares of several sizes are removed and the loss of fit is mapped.

Axes: N EEG segments, S scales, P places, B batch, D embedding, K classes, C EEG channels, T samples, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from eegvision.analyses.incremental import CleanPass, Rect
from eegvision.encoders.frozen import blurred
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.encoders.joint import JointModel
from eegvision.evaluate.probes import Probe
from eegvision.vocab import InputError

SCALES_PX = (3, 5, 9, 17, 33, 65)
Fill = Literal["zero", "black", "blur"]

# The blur that fills has this many standard deviations in the side of a picture: 10 px of 224.
_BLURS_PER_SIDE = 22.4
_N_RESAMPLES = 1000

# Places that are far apart have so large a rectangle in common that on a CPU more than 4 x 4 are no gain (measured on
# ResNet-18, 224 px, places 16 px apart); a GPU wants full batches.
_FAR_APART_SIDE = 4


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


@dataclass(frozen=True, kw_only=True)
class Fast:
    """How the fast engine works: a grid of exact values for each scale, made finer until the map is right.

    Attributes:
        fidelity: correlation of the map with the exact one that is to be reached at held-out pixels, in (0, 1).
        n_held_out: random pixels at which exact values decide whether the grid is fine enough, and as many others for
            the agreement that is reported; at least 8, at most half of all.
        steps_per_side: of the first grid, at least 1; 14 steps are 16 px apart in a picture of 224.
        seed: of the held-out pixels.
    """

    fidelity: float = 0.99
    n_held_out: int = 100
    steps_per_side: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fidelity < 1 or self.n_held_out < 8 or self.steps_per_side < 1:
            raise InputError(
                f"fidelity {self.fidelity}, {self.n_held_out} held-out pixels and {self.steps_per_side} steps: "
                "expected a fidelity in (0, 1), at least 8 pixels and 1 step"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """How far summed maps agree with the exact ones at `n` pixels drawn at random, one value for each segment.

    `r_N` is the correlation, `low_N` and `high_N` its 95 % interval (bootstrap over pixels), `rmse_N` the error, in the
    unit of the score unless scales are normalised. These pixels had no part in making the map, nor in deciding when it
    was good enough, so nothing is biased, and `r_N` can fall a little short of the target. Few pixels carry much of the
    error, which makes the interval somewhat narrow: of 100 on a random network it held the truth for 80 to 94.
    """

    r_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    rmse_N: np.ndarray
    n: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Saliency:
    """Maps of one picture, for each EEG segment or the one class.

    Attributes:
        map_NHW: S of Eq. 4, float32 in [0, 1]; a map without differences is 0.
        drop_NSHW: S_σ of Eq. 3 at every scale, float32 in the score's unit; positive where removal lowers the score.
        score_N: of the whole picture, float32.
        scales_px: σ, in the order of the axis S.
        n_evaluations: suppressed pictures that were encoded, of H W S.
        agreement: with the exact maps; None where these are exact.
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
    score: Tensor | ClassLikelihood,
    image_3HW: Tensor,
    *,
    scales_px: Sequence[int] = SCALES_PX,
    engine: Literal["exact", "fast"] | Fast = "exact",
    fill: Fill = "zero",
    normalise_scales: bool = False,
    batch_size: int = 64,
) -> Saliency:
    """Return how much the score falls when a square around each pixel is removed.

        S_σ(x, y) = F(e, v) - F(e, m_σ(x, y) v + (1 - m_σ(x, y)) u)           m: 0 in the σ x σ square, clipped, else 1
        S(x, y) = norm(Σ_σ S_σ(x, y)),   norm(s) = (s - min s) / (max s - min s)

    Source: Palazzo et al., arXiv 1810.10974, Eq. 3 and 4. There u = 0; which zero is not said. Here pictures are
    normalised as in batches, so that u = 0 is ImageNet's mean colour (`zero`); `black` is black, `blur` the picture
    itself, blurred by 1/22.4 of its side (mirrored edges). All EEG segments share the encoded pictures.

    The `exact` engine does every pixel, and of every encoding what the square changes (`incremental`). The `fast` one
    does a grid for each scale, cubic splines between its points, finer where the map needs it (`Fast`), and says how
    well the map agrees with exact values elsewhere. Neither depends on `batch_size` but for rounding; it bounds memory,
    and large ones suit GPUs.

    Args:
        model: in evaluation mode, on any device.
        score: EEG segments [N, C, T] as in batches or their embeddings [N, D] (`model.encode_eeg`) for the
            compatibility F, or the likelihood of a class.
        image_3HW: one picture of the model's size, normalised as in batches.
        scales_px: sides of the squares, odd.
        normalise_scales: bring every S_σ to [0, 1] before the sum, which large squares rule otherwise.
        batch_size: suppressed pictures encoded at a time.
    Raises:
        InputError: an argument is none of these, has another size than the model's, or is not finite; or the model is
            in training mode or has no image encoder from pixels.
    """
    scales_px = _checked(model, image_3HW, scales_px, engine, fill, batch_size)
    device = next(model.parameters()).device
    image_3HW = image_3HW.to(device, torch.float32)
    readout, fill_3HW = _readout(model, score, device), _filling(image_3HW, fill)
    # cuDNN rounds to 10 bits unless told not to, which is more than small squares change.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        suppressed = _Suppressed(model, readout, image_3HW, fill_3HW, batch_size)
        if engine == "exact":
            drop_NSHW, agreement = suppressed.every_pixel(scales_px), None
        else:
            how = engine if isinstance(engine, Fast) else Fast()
            drop_NSHW, agreement = _interpolated(suppressed, scales_px, how, normalise_scales)
    total_NHW = np.einsum("nshw,ns->nhw", drop_NSHW, _weights(drop_NSHW, normalise_scales), dtype=np.float64)
    return Saliency(
        map_NHW=_unit_range(total_NHW).astype(np.float32),
        drop_NSHW=drop_NSHW,
        score_N=suppressed.score_N,
        scales_px=scales_px,
        n_evaluations=suppressed.n_evaluations,
        agreement=agreement,
    )


class _Suppressed:
    """One picture with squares removed, and what that does to the score.

    Places near each other are encoded together, since a batch shares the rectangle that is computed again.
    """

    def __init__(
        self,
        model: JointModel,
        readout: Callable[[Tensor], Tensor],
        image_3HW: Tensor,
        fill_3HW: Tensor,
        batch_size: int,
    ) -> None:
        self._encode, self._readout = model.encode_image, readout
        self._image_3HW, self._fill_3HW, self._batch_size = image_3HW, fill_3HW, batch_size
        # CPUs convolve faster where the colours of a pixel lie together.
        self._layout = torch.channels_last if image_3HW.device.type == "cpu" else torch.contiguous_format
        self._clean = CleanPass(image_3HW[None].contiguous(memory_format=self._layout))
        self._score_N = readout(self._encode(self._clean.image_13HW))[0]
        self.score_N = self._score_N.cpu().numpy()
        self.shape: tuple[int, int] = (image_3HW.shape[1], image_3HW.shape[2])
        self.n_evaluations = 0

    def every_pixel(self, scales_px: tuple[int, ...]) -> np.ndarray:
        """Return S_σ [N, S, H, W]."""
        place_P2 = np.indices(self.shape).reshape(2, -1).T
        return np.stack([self.drop(place_P2, scale_px).reshape(-1, *self.shape) for scale_px in scales_px], axis=1)

    def drop(self, place_P2: np.ndarray, scale_px: int, spacing_px: int = 1) -> np.ndarray:
        """Return S_σ at places (row, column) that are about so far apart, [N, P]."""
        n_side = math.isqrt(self._batch_size)
        if spacing_px > 1 and self._image_3HW.device.type == "cpu":
            n_side = min(n_side, _FAR_APART_SIDE)
        tile_px = n_side * spacing_px
        tile_P2 = place_P2 // tile_px
        order_P = np.lexsort((place_P2[:, 1], place_P2[:, 0], tile_P2[:, 1], tile_P2[:, 0]))
        ends = np.flatnonzero(np.diff(tile_P2[order_P], axis=0).any(axis=1)) + 1
        pieces = [
            tile[start : start + self._batch_size]
            for tile in np.split(order_P, ends)
            for start in range(0, len(tile), self._batch_size)
        ]
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


def _interpolated(
    suppressed: _Suppressed, scales_px: tuple[int, ...], how: Fast, normalise_scales: bool
) -> tuple[np.ndarray, Agreement]:
    """Return S_σ [N, S, H, W] from grids of exact values, and how the summed maps agree with held-out pixels.

    The scale that is refined next is the one with most squared error, relative to the map's variance, for each new
    evaluation that refining it takes.
    """
    shape = suppressed.shape
    n_held = min(how.n_held_out, shape[0] * shape[1] // 2)
    held_P = np.random.default_rng(how.seed).choice(shape[0] * shape[1], 2 * n_held, replace=False)
    held_P2 = np.stack(np.unravel_index(held_P, shape), axis=1)
    deciding, reporting = (_HeldOut.drawn(suppressed, places, scales_px) for places in np.split(held_P2, 2))
    grids = [_Grid.first(suppressed, how.steps_per_side, scale_px) for scale_px in scales_px]
    while True:
        drop_NSHW = np.stack([grid.map_NHW() for grid in grids], axis=1)
        weight_NS = _weights(drop_NSHW, normalise_scales)
        new_S = np.array([grid.n_missing for grid in grids])
        if deciding.agreement(drop_NSHW, weight_NS).r_N.min() >= how.fidelity or not new_S.any():
            return drop_NSHW, reporting.agreement(drop_NSHW, weight_NS)
        worth_S = deciding.relative_error(drop_NSHW, weight_NS) / np.maximum(new_S, 1)
        best = int(np.where(new_S > 0, worth_S, -1).argmax())
        grids[best] = grids[best].refined(suppressed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _HeldOut:
    """Exact S_σ at pixels (row, column), to hold maps against."""

    place_P2: np.ndarray
    exact_NSP: np.ndarray

    @staticmethod
    def drawn(suppressed: _Suppressed, place_P2: np.ndarray, scales_px: tuple[int, ...]) -> _HeldOut:
        spacing_px = int(max(2, np.ptp(place_P2) / len(place_P2) ** 0.5))
        drops = [suppressed.drop(place_P2, scale_px, spacing_px) for scale_px in scales_px]
        return _HeldOut(place_P2=place_P2, exact_NSP=np.stack(drops, axis=1))

    def relative_error(self, drop_NSHW: np.ndarray, weight_NS: np.ndarray) -> np.ndarray:
        """Return the mean squared error of each scale over the variance of the sum, [S], of the worst segment."""
        error_NS = weight_NS**2 * ((self._found(drop_NSHW) - self.exact_NSP) ** 2).mean(axis=2)
        variance_N1 = np.einsum("nsp,ns->np", self.exact_NSP, weight_NS).var(axis=1, keepdims=True)
        return (error_NS / np.maximum(variance_N1, np.finfo(np.float32).tiny)).max(axis=0)

    def agreement(self, drop_NSHW: np.ndarray, weight_NS: np.ndarray) -> Agreement:
        """Return how the weighted sums of the maps agree."""
        both = (self._found(drop_NSHW), self.exact_NSP)
        return _agreement(*(np.einsum("nsp,ns->np", value_NSP, weight_NS) for value_NSP in both))

    def _found(self, drop_NSHW: np.ndarray) -> np.ndarray:
        return drop_NSHW[:, :, self.place_P2[:, 0], self.place_P2[:, 1]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grid:
    """Exact S_σ of one scale at the crossings of some rows and columns, the outermost among them."""

    scale_px: int
    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    value_NRC: np.ndarray

    @staticmethod
    def first(suppressed: _Suppressed, steps: int, scale_px: int) -> _Grid:
        shape = suppressed.shape
        rows, columns = (np.unique(np.linspace(0, n - 1, min(n, steps + 1)).round().astype(int)) for n in shape)
        place_P2 = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        value_NP = suppressed.drop(place_P2, scale_px, max(1, max(shape) // steps))
        value_NRC = value_NP.reshape(-1, len(rows), len(columns))
        return _Grid(scale_px=scale_px, shape=shape, rows=rows, columns=columns, value_NRC=value_NRC)

    @property
    def n_missing(self) -> int:
        """Evaluations that twice as many rows and columns would take."""
        return len(_halved(self.rows)) * len(_halved(self.columns)) - len(self.rows) * len(self.columns)

    def refined(self, suppressed: _Suppressed) -> _Grid:
        rows, columns = _halved(self.rows), _halved(self.columns)
        value_NRC = np.empty((len(self.value_NRC), len(rows), len(columns)), dtype=np.float32)
        is_old_RC = np.isin(rows, self.rows)[:, None] & np.isin(columns, self.columns)
        value_NRC[:, is_old_RC] = self.value_NRC.reshape(len(value_NRC), -1)
        row_P, column_P = np.nonzero(~is_old_RC)
        place_P2 = np.stack([rows[row_P], columns[column_P]], axis=1)
        value_NRC[:, ~is_old_RC] = suppressed.drop(place_P2, self.scale_px, int(np.diff(rows).max(initial=1)))
        return _Grid(scale_px=self.scale_px, shape=self.shape, rows=rows, columns=columns, value_NRC=value_NRC)

    def map_NHW(self) -> np.ndarray:
        """Return the cubic spline through the values, at every pixel, float32."""
        row_HR, column_WC = (_spline(at, n) for at, n in zip((self.rows, self.columns), self.shape, strict=True))
        return (row_HR @ self.value_NRC.astype(np.float64) @ column_WC.T).astype(np.float32)


def _halved(place_R: np.ndarray) -> np.ndarray:
    """Put one more place between any two that are not neighbours."""
    return np.union1d(place_R, (place_R[:-1] + place_R[1:]) // 2)


def _spline(place_R: np.ndarray, n: int) -> np.ndarray:
    """Return the matrix [n, R] from values at these places to those of the spline through them at 0 to n - 1."""
    if len(place_R) == 1:
        return np.ones((n, 1))
    degree = min(3, len(place_R) - 1)
    return make_interp_spline(place_R, np.eye(len(place_R)), k=degree)(np.arange(n))


def _agreement(found_NP: np.ndarray, exact_NP: np.ndarray) -> Agreement:
    n = exact_NP.shape[1]
    # Always the same draws: the interval of a map must not depend on what was computed before.
    drawn_RP = np.random.default_rng(0).integers(0, n, (_N_RESAMPLES, n))
    resampled_NR = _correlation(found_NP[:, drawn_RP], exact_NP[:, drawn_RP])
    low_N, high_N = np.quantile(resampled_NR, [0.025, 0.975], axis=1)
    rmse_N = np.sqrt(((found_NP - exact_NP) ** 2).mean(axis=1))
    return Agreement(r_N=_correlation(found_NP, exact_NP), low_N=low_N, high_N=high_N, rmse_N=rmse_N, n=n)


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


def _readout(model: JointModel, score: Tensor | ClassLikelihood, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from image embeddings [B, D] to scores [B, N]."""
    n_embed = model.config.image.embed_dim
    if isinstance(score, ClassLikelihood):
        if len(score.weight_DK) != n_embed:
            raise InputError(
                f"weight_DK is for embeddings of {len(score.weight_DK)} dimensions, those of the model have {n_embed}; "
                "fit the probe to its embeddings"
            )
        weight_DK = torch.as_tensor(score.weight_DK, dtype=torch.float32, device=device)
        bias_K = torch.as_tensor(score.bias_K, dtype=torch.float32, device=device)
        label = score.label
        return lambda image_BD: torch.log_softmax(image_BD @ weight_DK + bias_K, dim=1)[:, label, None]
    if score.ndim not in (2, 3) or len(score) == 0 or not torch.isfinite(score).all():
        raise InputError(
            f"EEG of shape {tuple(score.shape)} given, or values that are not finite; "
            "expected segments [N, C, T] or their embeddings [N, D]"
        )
    eeg_ND = score.to(device, torch.float32)
    eeg_ND = model.encode_eeg(eeg_ND) if eeg_ND.ndim == 3 else eeg_ND
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
    if engine not in ("exact", "fast") and not isinstance(engine, Fast):
        raise InputError(f"engine is {engine!r}; expected 'exact', 'fast' or Fast(...)")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    return scales
