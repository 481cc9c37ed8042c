"""EEG encoders, [B, C, T] -> [B, D]: Palazzo's dilated convolutions with a recurrent layer, and NICE's TSConv.

Each takes segments as the stream presents them; the z-score per segment and channel that both papers start from
happens there (`data.normalise`), not here. Axes: B batch, C channels, T samples, F filters, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from eegvision.config import EegConfig
from eegvision.vocab import InputError


def build_eeg_encoder(config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> nn.Module:
    """Return the encoder named by `config.encoder`, random weights, for segments of this shape and rate.

    Raises:
        InputError: segments are shorter than the encoder needs (TSConv, 75 samples).
    """
    assert n_chans >= 1, n_chans
    assert n_times >= 1, n_times
    return _ENCODERS[config.encoder](config.resolved(), n_chans, n_times, sfreq_hz)


class Palazzo(nn.Module):
    """Dilated temporal convolutions on each channel, then the last state of an LSTM or GRU, then a linear map.

        4 x [conv 3, dilation 1, 2, 4, 8, filters 32, 64, 96, 128 -> BatchNorm -> ELU], merge of channels, RNN, linear

    Source: Palazzo et al., arXiv 1810.10974, Section 3, which gives kernel, filters, state (256) and D. Ours, since
    the text is silent: the dilations, same padding, no bias before BatchNorm, ELU, and how channels merge:

    - `shared`: the same filters run on every channel (statistics of BatchNorm over B, C and T); then, for each
      filter, a learned weighted sum over channels, F x C weights: y[b,f,t] = sum_c w[f,c] x[b,f,c,t].
      Every filter so gets one scalp pattern of its own; a full map of all C x F maps would cost F times as many.
    - `mixed`: the first convolution takes all C channels as its inputs, so nothing is left to merge. About C times
      less arithmetic.

    Takes any number of samples, also one that differs from training.

    Shapes: [B, C, T] in the unit of the data set or z-scored -> [B, D].
    """

    n_filters = (32, 64, 96, 128)
    dilations = (1, 2, 4, 8)

    def __init__(self, config: EegConfig, n_chans: int, recurrent: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        assert config.channels is not None
        assert config.hidden is not None
        self.n_chans = n_chans
        self.is_shared = config.channels == "shared"
        # Either way a 2-D convolution of kernel (1, 3): channels are image rows (shared) or input planes (mixed).
        widths = (1 if self.is_shared else n_chans, *self.n_filters)
        blocks = []
        for n_in, n_out, dilation in zip(widths[:-1], widths[1:], self.dilations, strict=True):
            same = nn.Conv2d(n_in, n_out, (1, 3), padding=(0, dilation), dilation=(1, dilation), bias=False)
            # In place: BatchNorm needs its input for the backward pass, not its output, so a third of memory is saved.
            blocks.append(nn.Sequential(same, nn.BatchNorm2d(n_out), nn.ELU(inplace=True)))
        self.temporal = nn.Sequential(*blocks)
        if self.is_shared:
            # Random rather than 1/C: under an average reference the mean over channels is nothing but rounding.
            bound = n_chans**-0.5
            self.merge_F1C = nn.Parameter(torch.empty(self.n_filters[-1], 1, n_chans).uniform_(-bound, bound))
        self.recurrent = recurrent(self.n_filters[-1], config.hidden, batch_first=True)
        self.head = nn.Linear(config.hidden, config.embed_dim)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        _require_channels(eeg_BCT, self.n_chans)
        if self.is_shared:
            maps_BFCT = self.temporal(eeg_BCT.unsqueeze(1))
            maps_BFT = torch.matmul(self.merge_F1C, maps_BFCT).squeeze(2)
        else:
            maps_BFT = self.temporal(eeg_BCT.unsqueeze(2)).squeeze(2)
        _, state = self.recurrent(maps_BFT.transpose(1, 2))
        hidden_1BH = state[0] if isinstance(state, tuple) else state  # an LSTM also returns its cell state
        return self.head(hidden_1BH[-1])


class TSConv(nn.Module):
    """Temporal then spatial convolution of NICE, flattened and projected.

        conv (1 x 25) -> mean pool 51, stride 5 -> BatchNorm -> ELU -> conv (C x 1) -> BatchNorm -> ELU -> dropout
        -> conv (1 x 1) -> flatten, time-major -> RP(D), where RP = Linear to D; x + Dropout(Linear(GELU(x))); LayerNorm

    Weights of convolutions and linear layers start as N(0, 0.02), of BatchNorm as N(1, 0.02) with bias 0.
    Source: Song et al., ICLR 2024, and its released training script; kernels are in samples, chosen at 250 Hz.
    Departure in order only: pooling and the first convolution are both linear in time and commute, so we pool the
    input (stride 1) and take the convolution at every fifth sample: the same numbers from a sixth of the work.

    Bound to the length it was built for: T samples in, of which the flattened layer sees floor((T - 75) / 5) + 1 steps.

    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: T is below 75 at construction, or differs from it later.
    """

    kernel, pool, stride = 25, 51, 5

    def __init__(self, config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> None:
        super().__init__()
        assert config.filters is not None
        assert config.dropout is not None
        least = self.kernel + self.pool - 1
        if n_times < least:
            raise InputError(
                f"eeg.encoder 'tsconv' needs segments of at least {least} samples; these have {n_times} "
                f"({n_times / sfreq_hz:.3g} s at {sfreq_hz:g} Hz); choose a palazzo encoder or ingest longer segments"
            )
        self.n_chans, self.n_times = n_chans, n_times
        filters, embed_dim = config.filters, config.embed_dim
        n_steps = (n_times - least) // self.stride + 1
        self.encode = nn.Sequential(
            nn.AvgPool2d((1, self.pool), stride=1),
            nn.Conv2d(1, filters, (1, self.kernel), stride=(1, self.stride)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Conv2d(filters, filters, (n_chans, 1)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Dropout(config.dropout),
            nn.Conv2d(filters, filters, (1, 1)),
        )
        self.enter = nn.Linear(n_steps * filters, embed_dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(embed_dim, embed_dim), nn.Dropout(config.dropout))
        self.norm = nn.LayerNorm(embed_dim)
        self.apply(_init_nice)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        _require_channels(eeg_BCT, self.n_chans)
        if eeg_BCT.shape[-1] != self.n_times:
            raise InputError(
                f"this 'tsconv' encoder was built for segments of {self.n_times} samples and got {eeg_BCT.shape[-1]}; "
                "cut the segments alike, or use a palazzo encoder, which takes any length"
            )
        steps_BFT = self.encode(eeg_BCT.unsqueeze(1)).squeeze(2)
        x_BD = self.enter(steps_BFT.transpose(1, 2).flatten(1))
        return self.norm(x_BD + self.residual(x_BD))


def _init_nice(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _require_channels(eeg_BCT: torch.Tensor, n_chans: int) -> None:
    if eeg_BCT.ndim != 3 or eeg_BCT.shape[1] != n_chans:
        raise InputError(
            f"EEG of shape {tuple(eeg_BCT.shape)} given to an encoder of {n_chans} channels; expected [B, {n_chans}, T]"
        )


_ENCODERS: dict[str, Callable[[EegConfig, int, int, float], nn.Module]] = {
    "palazzo-lstm": lambda config, n_chans, _n_times, _sfreq_hz: Palazzo(config, n_chans, nn.LSTM),
    "palazzo-gru": lambda config, n_chans, _n_times, _sfreq_hz: Palazzo(config, n_chans, nn.GRU),
    "tsconv": TSConv,
}
