"""Which segments an encoder takes: refusals that name the encoder, the sizes and the remedy."""

from __future__ import annotations

import torch

from eegvision.vocab import InputError


def require_segments(eeg_BCT: torch.Tensor, n_chans: int, n_times: int | None = None, name: str = "") -> None:
    """Raise InputError unless the batch is [B, C, T] with these C and, where the encoder is bound to one, T."""
    if eeg_BCT.ndim != 3 or eeg_BCT.shape[1] != n_chans:
        raise InputError(
            f"EEG of shape {tuple(eeg_BCT.shape)} given to an encoder of {n_chans} channels; expected [B, {n_chans}, T]"
        )
    if n_times is not None and eeg_BCT.shape[2] != n_times:
        raise InputError(
            f"this {name!r} encoder was built for segments of {n_times} samples and got {eeg_BCT.shape[2]}; "
            "cut the segments alike, or use a palazzo encoder, which takes any length"
        )


def require_length(name: str, least: int, n_times: int, sfreq_hz: float) -> None:
    """Raise InputError if segments are shorter than the `least` samples that the encoder of this name needs."""
    if n_times < least:
        raise InputError(
            f"eeg.encoder {name!r} needs segments of at least {least} samples; these have {n_times} "
            f"({n_times / sfreq_hz:.3g} s at {sfreq_hz:g} Hz); choose a palazzo encoder or ingest longer segments"
        )


def require_montage(name: str, least: int, n_chans: int, remedy: str) -> None:
    """Raise InputError if there are fewer channels than the `least` that the encoder of this name needs."""
    if n_chans < least:
        raise InputError(f"eeg.encoder {name!r} needs at least {least} channels; the segments have {n_chans}; {remedy}")
