"""PerceiveLab's released EEG encoders: EEGChannelNet and the LSTM of Spampinato et al.

Axes: B batch, C channels (image rows), T samples (image columns), D embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from eegvision.config import EegConfig
from eegvision.encoders.bounds import require_segments
from eegvision.vocab import InputError


class ChannelNet(nn.Module):
    """EEGChannelNet: dilated convolutions in time, convolutions over channels at four scales, residual blocks.

        unit = BatchNorm -> ReLU -> conv (with bias) -> dropout of whole maps
        4 parallel units 1 -> 10, 1 x 33, stride 1 x 2, dilation 1, 2, 4, 8                    40 x C x T/2
        4 parallel units 40 -> 50, C/1, C/2, C/3, C/4 x 1, stride 2 x 1                        200 x C/2 x T/2
        `blocks` x [residual block of two 3 x 3 convolutions -> unit 200 -> 200, 3 x 3, stride 2]
        unit 200 -> 50, 3 x 3 -> flatten
        published: Linear to D         released: Linear to 1000 -> ReLU -> Linear to D

    `published` takes the embedding itself (their size is 1000), `released` what the script trains, in which D is the
    number of classes. The first unit's BatchNorm and ReLU act on the segment, so half of every wave is cut off, as
    released. Where C is odd the four scales can differ by a row (the released code fails there): rows beyond the
    smallest are left out. With fewer `blocks` than the released 4, smaller montages fit.

    Source: released code of Palazzo et al., TPAMI 2020 (`models/EEGChannelNet.py`, `layers.py`). Bound to its C and T.
    Shapes: [B, C, T] -> [B, D]. From 128 x 440: 64 x 220, 31 x 109, 15 x 54, 7 x 26, 3 x 12, 1 x 10; 500 values.
    Raises:
        InputError: C or T is too small for the number of blocks, or differs from that at construction.
    """

    def __init__(self, config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> None:
        super().__init__()
        assert config.blocks is not None
        assert config.dropout is not None
        self.name, self.n_chans, self.n_times = config.encoder, n_chans, n_times
        _require_size(config.blocks, n_chans, n_times, sfreq_hz)
        drop, kernels = config.dropout, [n_chans // scale for scale in (1, 2, 3, 4)]
        self.temporal = nn.ModuleList(
            _unit(nn.Conv2d(1, 10, (1, 33), (1, 2), (0, 16 * step), (1, step)), drop) for step in (1, 2, 4, 8)
        )
        self.spatial = nn.ModuleList(
            _unit(nn.Conv2d(40, 50, (rows, 1), (2, 1), ((rows - 1) // 2, 0)), drop) for rows in kernels
        )
        self.height = min((n_chans + 2 * ((n - 1) // 2) - n) // 2 + 1 for n in kernels)
        deeper: list[nn.Module] = []
        height, width = self.height, (n_times + 1) // 2
        for _ in range(config.blocks):
            deeper += [_Residual(200), _unit(nn.Conv2d(200, 200, 3, 2), drop)]
            height, width = (height - 3) // 2 + 1, (width - 3) // 2 + 1
        self.deeper = nn.Sequential(*deeper, _unit(nn.Conv2d(200, 50, 3), drop))
        n_flat = 50 * (height - 2) * (width - 2)
        self.head: nn.Module = nn.Linear(n_flat, config.embed_dim)
        if config.variant == "released":
            self.head = nn.Sequential(nn.Linear(n_flat, 1000), nn.ReLU(inplace=True), nn.Linear(1000, config.embed_dim))

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        require_segments(eeg_BCT, self.n_chans, self.n_times, self.name)
        segment_B1CT = eeg_BCT.unsqueeze(1)
        maps = torch.cat([unit(segment_B1CT) for unit in self.temporal], 1)
        maps = torch.cat([unit(maps)[:, :, : self.height] for unit in self.spatial], 1)
        return self.head(self.deeper(maps).flatten(1))


def _require_size(blocks: int, n_chans: int, n_times: int, sfreq_hz: float) -> None:
    def least(blocks: int) -> tuple[int, int]:
        # A 3 x 3 convolution of stride 2 needs 2 n + 1 to leave n, and the last one, of stride 1, needs 3.
        side = 2 ** (blocks + 2) - 1
        return 2 * side, 2 * side - 1  # four scales of C/2 rows or one more; (T + 1)/2 columns

    def fits(blocks: int) -> bool:
        return n_chans >= least(blocks)[0] and n_times >= least(blocks)[1]

    if not fits(blocks):
        fewer = [n for n in range(blocks) if fits(n)]
        remedy = f"set eeg.blocks to {fewer[-1]}" if fewer else "choose another encoder, for example 'tsconv'"
        raise InputError(
            f"eeg.encoder 'eeg-channelnet' with eeg.blocks {blocks} needs at least {least(blocks)[0]} channels and "
            f"{least(blocks)[1]} samples; the segments have {n_chans} channels and {n_times} samples "
            f"({n_times / sfreq_hz:.3g} s at {sfreq_hz:g} Hz); {remedy}"
        )


def _unit(conv: nn.Conv2d, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(conv.in_channels), nn.ReLU(inplace=True), conv, nn.Dropout2d(dropout))


class _Residual(nn.Module):
    """relu(x + BatchNorm(conv(relu(BatchNorm(conv(x)))))), 3 x 3 convolutions without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(maps + self.branch(maps))


class LastState(nn.Module):
    """PerceiveLab's LSTM: all channels of a sample go in together, the last state comes out.

        LSTM(C -> hidden) -> Linear to 128 -> ReLU -> Linear to D        (in the released code D is 40 class scores)

    Takes any number of samples. Source: Spampinato et al., CVPR 2017, and the released `models/lstm.py`; both states
    start at zero, so that its giving the cell the state of the hidden layer changes nothing.

    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: C differs from that at construction.
    """

    n_output = 128

    def __init__(self, config: EegConfig, n_chans: int) -> None:
        super().__init__()
        assert config.hidden is not None
        self.n_chans = n_chans
        self.recurrent = nn.LSTM(n_chans, config.hidden, batch_first=True)
        self.output = nn.Linear(config.hidden, self.n_output)
        self.head = nn.Linear(self.n_output, config.embed_dim)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        require_segments(eeg_BCT, self.n_chans)
        _, (hidden_1BH, _) = self.recurrent(eeg_BCT.transpose(1, 2))
        return self.head(torch.relu(self.output(hidden_1BH[-1])))
