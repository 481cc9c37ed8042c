"""EEG encoders that flatten what they found and project it: NICE's family, ATM-S, UBP's EEGProject.

All are bound to the length they were built for. Axes: B batch, C channels, T samples, F filters, D embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from eegvision.config import EegConfig
from eegvision.encoders.bounds import require_length, require_montage, require_segments
from eegvision.encoders.linear_runs import PooledTemporal, TemporalSpatial
from eegvision.encoders.over_channels import ChannelAttention, ChannelTransformer, GraphAttention


class Flattened(nn.Module):
    """A layer over channels (or none), convolutions, then a flattening and NICE's residual projection RP(D, p).

        x = Linear(flat);   LayerNorm(x + drop_p(Linear(GELU(x))))

    Shapes: [B, C, T] -> [B, D]. `encode` takes [B, 1, C, T] and gives `n_flat` values per segment, flattened filter
    by filter, or `time_major` from [B, F, 1, steps]. Subjects go to the layer over channels, where it takes them.
    Raises:
        InputError: C or T differ from those at construction.
    """

    def __init__(
        self,
        config: EegConfig,
        n_chans: int,
        n_times: int,
        *,
        encode: nn.Module,
        n_flat: int,
        before: nn.Module | None = None,
        time_major: bool = False,
    ) -> None:
        super().__init__()
        assert config.dropout is not None
        self.name, self.n_chans, self.n_times, self.time_major = config.encoder, n_chans, n_times, time_major
        self.before = before or nn.Identity()
        self.encode = encode
        self.enter = nn.Linear(n_flat, config.embed_dim)
        self.residual = nn.Sequential(
            nn.GELU(), nn.Linear(config.embed_dim, config.embed_dim), nn.Dropout(config.dropout)
        )
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, eeg_BCT: torch.Tensor, subject_B: torch.Tensor | None = None) -> torch.Tensor:
        require_segments(eeg_BCT, self.n_chans, self.n_times, self.name)
        mixed_BCT = self.before(eeg_BCT) if subject_B is None else self.before(eeg_BCT, subject_B)
        return self.project(self.encode(mixed_BCT.unsqueeze(1)))

    def project(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the embedding [B, D] of what `encode` gave."""
        if self.time_major:
            maps = maps.squeeze(2).transpose(1, 2)
        x_BD = self.enter(maps.flatten(1))
        return self.norm(x_BD + self.residual(x_BD))


_KERNEL, _POOL, _STRIDE = 25, 51, 5


def build_tsconv(config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float, n_subjects: int = 0) -> nn.Module:
    """Return NICE's TSConv, alone or behind a layer over channels (NICE-SA, NICE-GA; ATM-S, with a token per subject).

        conv (1 x 25) -> mean pool 51, stride 5 -> BatchNorm -> ELU -> conv (C x 1) -> BatchNorm -> ELU -> dropout
        -> conv (1 x 1) -> flatten, time-major -> RP(D)

    In NICE's three, weights of convolutions and linear layers start as N(0, 0.02), of BatchNorm as N(1, 0.02) with
    bias 0; in ATM-S as torch makes them. Source: Song et al., ICLR 2024, and its released training script; Li et al.,
    NeurIPS 2024; kernels are in samples, chosen at 250 Hz. Departure in order only: pooling and the first convolution
    are both linear in time and commute, so we pool the input (stride 1) and take the convolution at every fifth
    sample: the same numbers from a sixth of the work (`linear_runs` has the rest of it).

    Shapes: [B, C, T] -> [B, D]; the flattened layer sees floor((T - 75) / 5) + 1 steps of each filter.
    Raises:
        InputError: T is below 75, or there is one channel and NICE-SA or NICE-GA has nothing to relate.
    """
    assert config.filters is not None
    assert config.dropout is not None
    least, name, filters = _KERNEL + _POOL - 1, config.encoder, config.filters
    require_length(name, least, n_times, sfreq_hz)
    before: nn.Module | None = None
    if name in ("nice-sa", "nice-ga"):
        require_montage(name, 2, n_chans, "choose 'tsconv', which is the same without attention")
        is_graph = name == "nice-ga"
        before = GraphAttention(config, n_times) if is_graph else ChannelAttention(config, n_chans, n_times)
    elif name == "atm-s":
        before = ChannelTransformer(config, n_chans, n_times, n_subjects)
    encode = PooledTemporal(
        nn.AvgPool2d((1, _POOL), stride=1),
        nn.Conv2d(1, filters, (1, _KERNEL), stride=(1, _STRIDE)),
        nn.BatchNorm2d(filters),
        nn.ELU(),
        nn.Conv2d(filters, filters, (n_chans, 1)),
        nn.BatchNorm2d(filters),
        nn.ELU(),
        nn.Dropout(config.dropout),
        nn.Conv2d(filters, filters, (1, 1)),
    )
    n_flat = ((n_times - least) // _STRIDE + 1) * filters
    encoder = Flattened(config, n_chans, n_times, encode=encode, n_flat=n_flat, before=before, time_major=True)
    return encoder if name == "atm-s" else encoder.apply(_init_nice)


def build_shallow(config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> nn.Module:
    """Return NICE's ShallowNet for comparison: as TSConv, but pooling comes last and there is no 1 x 1 convolution.

        conv 40 (1 x 25) -> conv 40 (C x 1) -> BatchNorm -> ELU -> mean pool 51, stride 5 -> dropout -> flatten -> RP(D)

    Source: the released `eeg_encoder.py` of Song et al., ICLR 2024; weights start as in TSConv.
    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: T is below 75.
    """
    assert config.dropout is not None
    least = _KERNEL + _POOL - 1
    require_length(config.encoder, least, n_times, sfreq_hz)
    encode = TemporalSpatial(
        nn.Conv2d(1, 40, (1, _KERNEL)),
        nn.Conv2d(40, 40, (n_chans, 1)),
        nn.BatchNorm2d(40),
        nn.ELU(),
        nn.AvgPool2d((1, _POOL), stride=(1, _STRIDE)),
        nn.Dropout(config.dropout),
    )
    n_flat = 40 * ((n_times - least) // _STRIDE + 1)
    return Flattened(config, n_chans, n_times, encode=encode, n_flat=n_flat).apply(_init_nice)


def build_deep(config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> nn.Module:
    """Return NICE's DeepNet for comparison.

        conv 25 (1 x 10) -> conv 25 (C x 1) -> BatchNorm -> ELU -> max pool 2 -> dropout,
        then for 50, 100, 200 filters: conv (1 x 10) -> BatchNorm -> ELU -> max pool 2 -> dropout; flatten -> RP(D)

    Source: the released `eeg_encoder.py` of Song et al., ICLR 2024; weights start as in TSConv.
    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: T is below 151, so that nothing would be left after four poolings.
    """
    assert config.dropout is not None
    require_length(config.encoder, 151, n_times, sfreq_hz)
    layers: list[nn.Module] = [nn.Conv2d(1, 25, (1, 10)), nn.Conv2d(25, 25, (n_chans, 1))]
    n_steps = n_times
    for n_in, n_out in ((25, 25), (25, 50), (50, 100), (100, 200)):
        if n_in != n_out:
            layers.append(nn.Conv2d(n_in, n_out, (1, 10)))
        layers += [nn.BatchNorm2d(n_out), nn.ELU(), nn.MaxPool2d((1, 2)), nn.Dropout(config.dropout)]
        n_steps = (n_steps - 9) // 2
    encode = TemporalSpatial(*layers)
    return Flattened(config, n_chans, n_times, encode=encode, n_flat=200 * n_steps).apply(_init_nice)


def build_eegnet(config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> nn.Module:
    """Return NICE's EEGNet for comparison, which is not Lawhern's: every convolution is full and nothing is padded.

        conv 8 (1 x 64) -> BatchNorm -> conv 16 (C x 1) -> BatchNorm -> ELU -> mean pool 2 -> dropout
        -> conv 16 (1 x 16) -> BatchNorm -> ELU -> dropout of whole maps -> flatten -> RP(D)

    Source: the released `eeg_encoder.py` of Song et al., ICLR 2024; weights start as in TSConv.
    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: T is below 95.
    """
    assert config.dropout is not None
    require_length(config.encoder, 95, n_times, sfreq_hz)
    encode = TemporalSpatial(
        nn.Conv2d(1, 8, (1, 64)),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, (n_chans, 1)),
        nn.BatchNorm2d(16),
        nn.ELU(),
        nn.AvgPool2d((1, 2)),
        nn.Dropout(config.dropout),
        nn.Conv2d(16, 16, (1, 16)),
        nn.BatchNorm2d(16),
        nn.ELU(),
        nn.Dropout2d(config.dropout),
    )
    n_flat = 16 * ((n_times - 63) // 2 - 15)
    return Flattened(config, n_chans, n_times, encode=encode, n_flat=n_flat).apply(_init_nice)


def build_project(config: EegConfig, n_chans: int, n_times: int, _sfreq_hz: float) -> nn.Module:
    """Return UBP's EEGProject: no convolution at all, the C x T samples go straight into RP(D).

    Source: Wu et al., CVPR 2025 (uncertainty-aware blur prior), and its released code; weights start as torch makes
    them. Shapes: [B, C, T] -> [B, D].
    """
    return Flattened(config, n_chans, n_times, encode=nn.Identity(), n_flat=n_chans * n_times)


def _init_nice(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
