"""Palazzo's EEG encoder: dilated temporal convolutions on each channel, then a recurrent layer."""

from __future__ import annotations

import torch
from torch import nn

from eegvision.config import EegConfig
from eegvision.encoders.bounds import require_segments


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
        require_segments(eeg_BCT, self.n_chans)
        if self.is_shared:
            maps_BFCT = self.temporal(eeg_BCT.unsqueeze(1))
            maps_BFT = torch.matmul(self.merge_F1C, maps_BFCT).squeeze(2)
        else:
            maps_BFT = self.temporal(eeg_BCT.unsqueeze(2)).squeeze(2)
        return self.summarise(maps_BFT)

    def summarise(self, maps_BFT: torch.Tensor) -> torch.Tensor:
        """Return the embedding [B, D] of the merged maps: the recurrent layer and the head."""
        _, state = self.recurrent(maps_BFT.transpose(1, 2))
        hidden_1BH = state[0] if isinstance(state, tuple) else state  # an LSTM also returns its cell state
        return self.head(hidden_1BH[-1])
