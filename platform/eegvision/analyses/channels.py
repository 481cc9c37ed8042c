"""Channel importance: what a segment's match with its picture loses when noise takes the place of one channel.

    I_c(e, v) = F(e, v) - F(e_-c, v)              Palazzo et al., arXiv 1810.10974, Eq. 5-7

`e_-c` is the segment with row c replaced by Gaussian noise of that row's mean and variance, low-passed. The noise is a
function of (seed, segment, channel, draw, stretch of samples) alone, so that chunks, their order and the machine they
are computed on do not matter. F is a dot product, so with dphi_c = phi(e) - phi(e_-c) it is I_c = dphi_c . theta(v):
the changes of the embedding are what is computed, and pictures enter by one product at the end.

Axes: B segments of a chunk, N segments, G groups, R draws of noise, C channels, T samples, U independent units,
D embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import scipy.fft
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision.encoders.flattened import Flattened
from eegvision.encoders.joint import JointModel
from eegvision.encoders.palazzo import Palazzo
from eegvision.vocab import InputError

PALAZZO_INTERVALS_S = ((0.0, 0.08), (0.08, 0.16), (0.16, 0.32), (0.32, 0.44))
"""The intervals of Palazzo et al., Section 7.4.1."""

Encoded = Literal["segment", "excerpt", "noise outside"]


class EegModel(Protocol):
    """What an analysis asks of a model: phi(e), [B, C, T] and rows of subjects [B] or None -> [B, D]."""

    def encode_eeg(self, eeg_BCT: Tensor, subject_B: Tensor | None = None, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise that takes the place of channels or of samples."""

    sfreq_hz: float
    """Samples per second of the segments, > 0."""
    cutoff_hz: float = 100.0
    """Highest rate in the noise, > 0; at or above half of `sfreq_hz` it is white."""
    n_draws: int = 4
    """Times each replacement is drawn and encoded, at least 1; a standard error needs 2."""
    seed: int = 0
    """Of all draws, >= 0."""

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("sfreq_hz", 0 < self.sfreq_hz < math.inf, "a rate above 0 Hz"),
            ("cutoff_hz", 0 < self.cutoff_hz < math.inf, "a rate above 0 Hz"),
            ("n_draws", self.n_draws >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**64, "0 to 2^64 - 1"),
        ):
            if not holds:
                raise InputError(f"noise.{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def is_filtered(self) -> bool:
        """Whether the cutoff lies below half the sampling rate, so that there is something to filter."""
        return self.cutoff_hz < self.sfreq_hz / 2


def noise_rows(
    row_CT: np.ndarray, segment_id: str, channels: Sequence[str], draw: int, noise: Noise, first: int = 0
) -> np.ndarray:
    """Return Gaussian noise with the mean and variance of each row, float32 [C, T].

        n_c(t) = mean_c + sd_c x_c(t),   x stationary, of unit variance, flat from 0 to `cutoff_hz` and nothing above

    The variance is that of the noise after the low-pass, as expectation: each draw's own mean and variance scatter
    around the row's, as those of any stretch of Gaussian noise do. Mean and variance are over the samples given
    (divisor T). x is the low-passed white noise of twice the length, cut, so that its ends do not meet; only its
    components below the cutoff are drawn.
    Source of the generator, which gives every row a stream of its own: Salmon et al. 2011, SC'11 (Philox).

    Args:
        row_CT: the samples to replace.
        segment_id, channels, draw: with `first`, T and the seed they determine the noise.
        first: the sample of the segment at which the stretch begins, so that stretches have noise of their own.
    """
    n_times = row_CT.shape[1]
    bits = np.random.Philox(key=np.array([_code(segment_id), noise.seed], dtype=np.uint64))
    generator, state = np.random.Generator(bits), bits.state
    n_long = 2 * n_times
    n_waves = math.floor(noise.cutoff_hz * n_long / noise.sfreq_hz + 1e-9)
    unit_CM = np.empty((len(channels), 1 + 2 * n_waves if noise.is_filtered else n_times))
    for row, channel in enumerate(channels):
        # The first word counts along a row's stream; the other three say whose stream it is.
        state["state"]["counter"] = np.array([0, _code(channel), draw, (first << 32) + n_times], dtype=np.uint64)
        bits.state = state
        generator.standard_normal(out=unit_CM[row])
    if noise.is_filtered:
        # 1 + 2 K unit normals: one constant, K cosines and K sines, which share the variance equally.
        spectrum_CK = np.zeros((len(channels), n_times + 1), dtype=np.complex128)
        spectrum_CK[:, 0] = unit_CM[:, 0]
        spectrum_CK[:, 1 : n_waves + 1] = (unit_CM[:, 1::2] - 1j * unit_CM[:, 2::2]) / math.sqrt(2)
        unit_CM = scipy.fft.irfft(spectrum_CK, n=n_long, axis=1)[:, :n_times] * n_long / math.sqrt(1 + 2 * n_waves)
    mean_C1 = row_CT.mean(axis=1, keepdims=True, dtype=np.float64)
    sd_C1 = row_CT.std(axis=1, keepdims=True, dtype=np.float64)
    return (mean_C1 + sd_C1 * unit_CM).astype(np.float32)


def noise_like(
    eeg_BCT: Tensor, segment_ids: Sequence[str], channels: Sequence[str], draw: int, noise: Noise, first: int = 0
) -> Tensor:
    """Return `noise_rows` of every segment, [B, C, T], where the segments are."""
    rows = [
        noise_rows(row_CT, segment_id, channels, draw, noise, first)
        for row_CT, segment_id in zip(eeg_BCT.cpu().numpy(), segment_ids, strict=True)
    ]
    return torch.from_numpy(np.stack(rows)).to(eeg_BCT)


def outside_replaced(
    eeg_BCT: Tensor,
    samples: tuple[int, int],
    segment_ids: Sequence[str],
    channels: Sequence[str],
    draw: int,
    noise: Noise,
) -> Tensor:
    """Return segments whose samples before and after `samples` are noise, each stretch of its own mean and variance."""
    first, stop = samples
    parts = [eeg_BCT[:, :, first:stop]]
    if first > 0:
        parts.insert(0, noise_like(eeg_BCT[:, :, :first], segment_ids, channels, draw, noise))
    if stop < eeg_BCT.shape[2]:
        parts.append(noise_like(eeg_BCT[:, :, stop:], segment_ids, channels, draw, noise, stop))
    return torch.cat(parts, 2)


def samples_of(interval_s: tuple[float, float], *, t_min_s: float, sfreq_hz: float, n_times: int) -> tuple[int, int]:
    """Return (first, stop): samples from the interval's beginning (included) to its end (not included).

    Args:
        interval_s: after stimulus onset.
        t_min_s: when the first sample was taken, after stimulus onset.
    Raises:
        InputError: the interval holds no sample, or leaves the segment.
    """
    first, stop = (math.ceil(round((edge_s - t_min_s) * sfreq_hz, 6)) for edge_s in interval_s)
    if not 0 <= first < stop <= n_times:
        raise InputError(
            f"interval {interval_s[0]:g} to {interval_s[1]:g} s holds no sample of the segments or leaves them; they "
            f"run from {t_min_s:g} to {t_min_s + n_times / sfreq_hz:g} s at {sfreq_hz:g} Hz; choose it within them"
        )
    return first, stop


def takes_excerpt(model: EegModel, eeg_BCT: Tensor, samples: tuple[int, int], subject_B: Tensor | None) -> bool:
    """Return whether the encoder takes these samples alone, which most are not built for."""
    excerpt_1CT = eeg_BCT[:1, :, samples[0] : samples[1]]
    try:
        with torch.no_grad():
            model.encode_eeg(excerpt_1CT, None if subject_B is None else subject_B[:1])
    except InputError:
        return False
    return True


# ---- what one channel changes


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelChanges:
    """phi(e), `eeg_BRD`, and phi(e) - phi(e_-c), `change_BRCD`, for each draw, float32 where the segments are.

    `encoded` says what was given to the encoder: whole segments; the excerpt of the interval alone; or, where the
    encoder is bound to a length, segments with noise outside the interval, drawn anew for each draw and the same with
    and without the channel.
    """

    eeg_BRD: Tensor
    change_BRCD: Tensor
    encoded: Encoded


@torch.no_grad()
def channel_changes(
    model: EegModel,
    eeg_BCT: Tensor,
    segment_ids: Sequence[str],
    channels: Sequence[str],
    noise: Noise,
    *,
    samples: tuple[int, int] | None = None,
    subject_B: Tensor | None = None,
    batch_size: int = 256,
) -> ChannelChanges:
    """Return how the embedding of each segment changes with each channel; see `ChannelChanges`.

        dphi_c = phi(e) - phi(e_-c)

    Where the encoder treats rows alike and then adds them up (Palazzo's `shared`, TSConv and its kin without attention)
    each row and its noise pass the first layers once and every copy is a sum of what came out; else every copy of a
    segment is encoded whole. Both are the definition, to rounding.

    Args:
        eeg_BCT: segments as the model sees them, on its device.
        segment_ids: one of its own for each segment.
        channels: names of the rows.
        noise: its rate, cutoff, draws and seed.
        samples: (first, stop), an interval that is to be looked at alone; noise then has the mean and variance of the
            row within it. None for all.
        subject_B: rows of subjects, as for `JointModel.encode_eeg`.
        batch_size: copies encoded at once, at least those of one segment where rows are summed; it changes the
            results by rounding only.
    Raises:
        InputError: shapes or names do not fit, a sample is not finite, the interval leaves the segment, or the model
            is in training mode, embeds segments by their place in a batch, or was trained on other channels.
    """
    check_chunk(model, eeg_BCT, segment_ids, channels, noise, subject_B, batch_size)
    first, stop = samples or (0, eeg_BCT.shape[2])
    if not 0 <= first < stop <= eeg_BCT.shape[2]:
        raise InputError(f"samples {first} to {stop} of segments of {eeg_BCT.shape[2]}; choose some within them")
    encoded: Encoded = "segment"
    if samples is not None:
        encoded = "excerpt" if takes_excerpt(model, eeg_BCT, samples, subject_B) else "noise outside"
    copies = _copies_of(model, eeg_BCT.shape[1])
    eegs, changes = [], []
    size = max(1, batch_size // eeg_BCT.shape[1])
    for rows in (slice(start, start + size) for start in range(0, len(eeg_BCT), size)):
        segment_BCT, ids = eeg_BCT[rows], segment_ids[rows]
        subject = None if subject_B is None else subject_B[rows]
        shown_BCT = segment_BCT[:, :, first:stop]
        # Where nothing else is random, all draws share one segment.
        groups = [[draw] for draw in range(noise.n_draws)] if encoded == "noise outside" else [range(noise.n_draws)]
        eeg_parts, change_parts = [], []
        for draws in groups:
            noise_BRCT = torch.stack([noise_like(shown_BCT, ids, channels, draw, noise, first) for draw in draws], 1)
            seen_BCT = shown_BCT
            if encoded == "noise outside":
                seen_BCT = outside_replaced(segment_BCT, (first, stop), ids, channels, draws[0], noise)
                within_BRCT, noise_BRCT = noise_BRCT, seen_BCT[:, None].clone()
                noise_BRCT[..., first:stop] = within_BRCT
            eeg_B1D = model.encode_eeg(seen_BCT, subject)[:, None]
            eeg_parts.append(eeg_B1D.expand(-1, len(draws), -1))
            change_parts.append(eeg_B1D[:, :, None] - copies(seen_BCT, noise_BRCT, subject, batch_size))
        eegs.append(torch.cat(eeg_parts, 1))
        changes.append(torch.cat(change_parts, 1))
    return ChannelChanges(eeg_BRD=torch.cat(eegs), change_BRCD=torch.cat(changes), encoded=encoded)


def check_chunk(
    model: EegModel,
    eeg_BCT: Tensor,
    segment_ids: Sequence[str],
    channels: Sequence[str],
    noise: Noise,
    subject_B: Tensor | None,
    batch_size: int,
) -> None:
    """Raise `InputError` unless the chunk, its names and its rate fit each other and the model."""
    shape = tuple(eeg_BCT.shape)
    if len(shape) != 3 or 0 in shape or shape[:2] != (len(segment_ids), len(channels)):
        raise InputError(
            f"EEG of shape {shape} with {len(segment_ids)} segment ids and {len(channels)} channel names; "
            "expected [B, C, T] with one id for each segment and one name for each row"
        )
    for what, names in (("segment id", segment_ids), ("channel", channels)):
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise InputError(f"{what} {twice!r} is there twice and would get the same noise twice; make names unique")
    is_finite_BC = eeg_BCT.isfinite().all(2)
    if not is_finite_BC.all():
        b, c = (~is_finite_BC).nonzero()[0].tolist()
        raise InputError(
            f"segment {segment_ids[b]!r} is not finite at channel {channels[c]!r}; leave the segment out, or ingest "
            "it without that channel"
        )
    if subject_B is not None and subject_B.shape != eeg_BCT.shape[:1]:
        raise InputError(f"{len(eeg_BCT)} segments with subjects of shape {tuple(subject_B.shape)}; give one for each")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1")
    if isinstance(model, nn.Module) and model.training:
        raise InputError("the model is in training mode, where dropout would pass for an effect; call model.eval()")
    if isinstance(model, JointModel):
        eeg, known = model.config.eeg.resolved(), model.data
        if tuple(known.get("channels", channels)) != tuple(channels) or known["sfreq_hz"] != noise.sfreq_hz:
            raise InputError(
                f"the model was trained on channels {', '.join(known.get('channels', channels))} at "
                f"{known['sfreq_hz']:g} Hz, and these are {', '.join(channels)} at {noise.sfreq_hz:g} Hz; give "
                "segments of the data set it was trained on, cut as in training"
            )
        if eeg.encoder == "nice-ga" and eeg.variant == "released":
            raise InputError(
                "eeg.encoder 'nice-ga' as released embeds a segment by its place in the batch, so copies of a segment "
                "cannot be compared; train it with eeg.variant 'published'"
            )


# (segments [B,C,T], noise [B,R,C,T], rows of subjects [B] or None, copies at once) -> embeddings of copies [B,R,C,D]
_Copies = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]


def _copies_of(model: EegModel, n_chans: int) -> _Copies:
    """Return what encodes, for each channel, the copy of a segment with noise in this channel's place."""
    parts = _row_parts(model, n_chans)
    if parts is None:
        return lambda eeg_BCT, noise_BRCT, subject_B, size: _whole(model, eeg_BCT, noise_BRCT, subject_B, size)
    return lambda eeg_BCT, noise_BRCT, _subject_B, size: _by_rows(parts, eeg_BCT, noise_BRCT, size)


def _whole(model: EegModel, eeg_BCT: Tensor, noise_BRCT: Tensor, subject_B: Tensor | None, batch_size: int) -> Tensor:
    n_segments, n_draws, n_chans, _ = noise_BRCT.shape
    embedded = []
    for index_n in torch.arange(n_segments * n_draws * n_chans, device=eeg_BCT.device).split(batch_size):
        b, draw, channel = index_n // (n_draws * n_chans), index_n // n_chans % n_draws, index_n % n_chans
        copy_nCT = eeg_BCT[b]
        copy_nCT[torch.arange(len(b), device=b.device), channel] = noise_BRCT[b, draw, channel]
        embedded.append(model.encode_eeg(copy_nCT, None if subject_B is None else subject_B[b]))
    return torch.cat(embedded).unflatten(0, (n_segments, n_draws, n_chans))


class _RowParts(NamedTuple):
    """An encoder as rest(bias + sum over c of share_c(rows(e)_c)): what makes copies cheap."""

    rows: Callable[[Tensor], Tensor]
    """[B, 1, C, T] -> [B, F, C, S], each channel by itself."""
    shares: Callable[[Tensor], Tensor]
    """[B, F, C, S] -> [B, C, O, S], linear."""
    bias_O1: Tensor | float
    rest: Callable[[Tensor], Tensor]
    """[B, O, S] -> [B, D]."""


def _by_rows(parts: _RowParts, eeg_BCT: Tensor, noise_BRCT: Tensor, batch_size: int) -> Tensor:
    share_BCOS = parts.shares(parts.rows(eeg_BCT[:, None]))
    sum_B1OS = share_BCOS.sum(1, keepdim=True) + parts.bias_O1
    embedded = []
    for noise_BCT in noise_BRCT.unbind(1):
        copy_BCOS = sum_B1OS + (parts.shares(parts.rows(noise_BCT[:, None])) - share_BCOS)
        flat = copy_BCOS.flatten(0, 1)
        copies_nD = torch.cat([parts.rest(part) for part in flat.split(batch_size)])
        embedded.append(copies_nD.unflatten(0, copy_BCOS.shape[:2]))
    return torch.stack(embedded, 1)


def _row_parts(model: EegModel, n_chans: int) -> _RowParts | None:
    """Return a model's parts, or None where channels meet before they are summed."""
    if not isinstance(model, JointModel):
        return None
    normalise = bool(model.config.loss.resolved().normalise_eeg)

    def finish(embedding_BD: Tensor) -> Tensor:
        return F.normalize(embedding_BD.float(), dim=1) if normalise else embedding_BD.float()

    encoder = model.eeg
    if isinstance(encoder, Palazzo) and encoder.is_shared:
        weight_CF1 = encoder.merge_F1C.permute(2, 0, 1)
        return _RowParts(
            rows=encoder.temporal,
            shares=lambda x_BFCT: x_BFCT.transpose(1, 2) * weight_CF1,
            bias_O1=0.0,
            rest=lambda maps_BFT: finish(encoder.summarise(maps_BFT)),
        )
    if not (isinstance(encoder, Flattened) and isinstance(encoder.encode, nn.Sequential)):
        return None
    layers = list(encoder.encode)
    at = next((n for n, layer in enumerate(layers) if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1), 0)
    merge = layers[at] if layers else None
    if not (
        isinstance(encoder.before, nn.Identity)
        and isinstance(merge, nn.Conv2d)
        and merge.kernel_size == (n_chans, 1)
        and (merge.stride, merge.padding, merge.groups) == ((1, 1), (0, 0), 1)
        and all(isinstance(layer, nn.Conv2d | nn.AvgPool2d | nn.BatchNorm2d | nn.ELU) for layer in layers[:at])
    ):
        return None
    rows, after = nn.Sequential(*layers[:at]), nn.Sequential(*layers[at + 1 :])
    weight_OFC = merge.weight.squeeze(3)
    return _RowParts(
        rows=rows,
        shares=lambda x_BFCS: torch.einsum("ofc,bfcs->bcos", weight_OFC, x_BFCS),
        bias_O1=0.0 if merge.bias is None else merge.bias[:, None],
        rest=lambda maps_BOS: finish(encoder.project(after(maps_BOS[:, :, None]))),
    )


# ---- importance and its averages


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelImportance:
    """Importance of every channel for every segment, float64, in units of the compatibility F.

    `importance_NC` is the mean over draws, `draw_error_NC` its standard error (NaN of one draw), `compatibility_N` is
    F(e, v). `noise.is_filtered` is False where its cutoff lies at or above half the sampling rate.
    `samples` is the interval that was looked at, None for all; `encoded` as in `ChannelChanges`.
    """

    segment_ids: tuple[str, ...]
    channels: tuple[str, ...]
    compatibility_N: np.ndarray
    importance_NC: np.ndarray
    draw_error_NC: np.ndarray
    noise: Noise
    samples: tuple[int, int] | None
    encoded: Encoded


def channel_importance(
    model: EegModel,
    eeg_BCT: Tensor,
    image_BD: Tensor,
    segment_ids: Sequence[str],
    channels: Sequence[str],
    noise: Noise,
    *,
    samples: tuple[int, int] | None = None,
    subject_B: Tensor | None = None,
    batch_size: int = 256,
) -> ChannelImportance:
    """Return the importance of every channel for a chunk of segments and their pictures.

        I_c(e, v) = mean over draws of F(e, v) - F(e_-c, v) = mean over draws of dphi_c . theta(v)

    Whatever every picture shares is in it too: a channel that only makes embeddings longer counts. With theta(v) less
    its mean over pictures in the place of `image_BD` it is the part that speaks of this picture, against all of them.

    Args:
        image_BD: theta(v) of each segment's picture (`JointModel.encode_image`), encoded once per picture.
        eeg_BCT, segment_ids, channels, noise, samples, subject_B, batch_size: as in `channel_changes`.
    Raises:
        InputError: as `channel_changes`, or embeddings of another shape.
    """
    changes = channel_changes(
        model, eeg_BCT, segment_ids, channels, noise, samples=samples, subject_B=subject_B, batch_size=batch_size
    )
    return importance_of(changes, image_BD, segment_ids, channels, noise, samples=samples)


def importance_of(
    changes: ChannelChanges,
    image_BD: Tensor,
    segment_ids: Sequence[str],
    channels: Sequence[str],
    noise: Noise,
    *,
    samples: tuple[int, int] | None = None,
) -> ChannelImportance:
    """Return the importance for other pictures, or pictures less their mean, of changes that were computed once.

    Args:
        changes: `channel_changes` of these segments, channels, noise and samples.
        image_BD: theta(v), or what stands in its place, one for each segment.
    Raises:
        InputError: embeddings of another shape.
    """
    expected = (len(changes.eeg_BRD), changes.eeg_BRD.shape[2])
    if tuple(image_BD.shape) != expected:
        raise InputError(
            f"image embeddings of shape {tuple(image_BD.shape)}; expected {expected}, one for each segment, from "
            "encode_image of the same model"
        )
    image_BD = image_BD.double()
    importance_BRC = torch.einsum("brcd,bd->brc", changes.change_BRCD.double(), image_BD).cpu().numpy()
    compatibility_BR = torch.einsum("brd,bd->br", changes.eeg_BRD.double(), image_BD).cpu().numpy()
    n_draws = noise.n_draws
    error_BC = (
        importance_BRC.std(axis=1, ddof=1) / math.sqrt(n_draws)
        if n_draws > 1
        else np.full_like(importance_BRC[:, 0], np.nan)
    )
    return ChannelImportance(
        segment_ids=tuple(segment_ids),
        channels=tuple(channels),
        compatibility_N=compatibility_BR.mean(axis=1),
        importance_NC=importance_BRC.mean(axis=1),
        draw_error_NC=error_BC,
        noise=noise,
        samples=samples,
        encoded=changes.encoded,
    )


def joined(parts: Iterable[ChannelImportance]) -> ChannelImportance:
    """Return the chunks of one analysis as one, segments sorted by id, so that the order of chunks does not matter.

    Raises:
        InputError: there is no chunk, chunks were made with other settings, or a segment is in two of them.
    """
    parts = list(parts)
    if not parts:
        raise InputError("there is no chunk to join; compute at least one")
    for name in ("channels", "noise", "samples", "encoded"):
        values = {getattr(part, name) for part in parts}
        if len(values) > 1:
            raise InputError(f"chunks differ in {name}: {sorted(map(str, values))}; compute all with one setting")
    ids = [segment_id for part in parts for segment_id in part.segment_ids]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(f"segment {twice!r} is in two chunks; give each segment once")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return replace(
        parts[0],
        segment_ids=tuple(ids[n] for n in order),
        compatibility_N=np.concatenate([part.compatibility_N for part in parts])[order],
        importance_NC=np.concatenate([part.importance_NC for part in parts])[order],
        draw_error_NC=np.concatenate([part.draw_error_NC for part in parts])[order],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelAverages:
    """Mean importance of every channel in every group, with its standard errors; groups sorted.

    `error_GC` is what other units would change, draws included (NaN of one unit); `draw_error_GC` the part of it that
    more draws would take away (NaN of one draw).
    """

    groups: tuple[str, ...]
    channels: tuple[str, ...]
    mean_GC: np.ndarray
    error_GC: np.ndarray
    draw_error_GC: np.ndarray
    n_segments_G: np.ndarray
    n_units_G: np.ndarray


def average(found: ChannelImportance, unit_N: np.ndarray, group_N: np.ndarray | None = None) -> ChannelAverages:
    """Return the mean over segments of each group: of the data set, per class, subject, or category.

        m = sum_i I_i / n        SE^2 = U/(U - 1) sum_u (sum over i in u of (I_i - m))^2 / n^2

    Segments of one unit go together, so that many presentations of one picture add no false certainty.
    Source: Liang & Zeger 1986, Biometrika 73, 13 (errors that are robust to clusters).

    Args:
        found: importance of N segments.
        unit_N: what is a sample of others like it: the picture of each segment, or the subject.
        group_N: class, subject, or category of each segment; None for one group called "all".
    Raises:
        InputError: not one unit and one group for each segment.
    """
    n_segments = len(found.segment_ids)
    unit_N = np.asarray(unit_N)
    group_N = np.full(n_segments, "all") if group_N is None else np.asarray(group_N)
    if unit_N.shape != (n_segments,) or group_N.shape != (n_segments,) or n_segments == 0:
        raise InputError(
            f"{n_segments} segments with units of shape {unit_N.shape} and groups of shape {group_N.shape}; "
            "give at least one segment, and one unit and one group for each"
        )
    groups_G = np.unique(group_N)
    means, errors, draw_errors, n_units = [], [], [], []
    for group in groups_G:
        is_in_N = group_N == group
        value_nC, n = found.importance_NC[is_in_N], np.count_nonzero(is_in_N)
        mean_C = value_nC.mean(axis=0)
        residual_UC = _sums(value_nC - mean_C, unit_N[is_in_N])[0]
        n_units.append(len(residual_UC))
        scale = n_units[-1] / (n_units[-1] - 1) if n_units[-1] > 1 else np.nan
        means.append(mean_C)
        errors.append(np.sqrt(scale * (residual_UC**2).sum(axis=0)) / n)
        draw_errors.append(np.sqrt((found.draw_error_NC[is_in_N] ** 2).sum(axis=0)) / n)
    return ChannelAverages(
        groups=tuple(map(str, groups_G)),
        channels=found.channels,
        mean_GC=np.stack(means),
        error_GC=np.stack(errors),
        draw_error_GC=np.stack(draw_errors),
        n_segments_G=np.array([np.count_nonzero(group_N == group) for group in groups_G]),
        n_units_G=np.array(n_units),
    )


def _sums(value_NX: np.ndarray, unit_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum over each unit's rows, [U, X], and how many rows it has, [U]."""
    units_U, index_N, count_U = np.unique(unit_N, return_inverse=True, return_counts=True)
    sum_UX = np.zeros((len(units_U), value_NX.shape[1]))
    np.add.at(sum_UX, index_N, value_NX)
    return sum_UX, count_U


def _code(name: str) -> int:
    """Return 64 bits that stand for a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
