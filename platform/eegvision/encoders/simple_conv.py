"""SimpleConvTimeAgg: convolutions over virtual channels, which are found from where the electrodes are.

Axes: B batch, C channels, O virtual channels, E position features, T samples, D embedding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from eegvision.config import EegConfig
from eegvision.encoders.bounds import require_segments
from eegvision.encoders.linear_runs import is_watched
from eegvision.vocab import InputError

Positions = Sequence[tuple[float, float, float]]


class SimpleConvTimeAgg(nn.Module):
    """Attention over electrode positions, dilated residual convolutions, a learned mean over time.

        p = positions scaled to [0, 1] along each axis;   e(p) = cos, sin of 2 pi k . (p + 0.2) / 1.4, k in {0..9}^3
        virtual channel o = sum over c of softmax_c(w_o . e(p_c)) x_c, 270 of them                     w: 270 x 2000
        conv 270 (1) -> 4 x [conv `hidden` (3), dilation 1, 2, 4, 8 -> BatchNorm -> GELU, plus its input where widths
        agree; after the 2nd and 4th: conv (3) to twice the width -> GLU] -> conv 2 x `hidden` (1) -> GELU
        -> conv 512 (1) -> sum over t of a_t y_t + b -> Linear to D

    In training the channels within `dropout_radius` of a point drawn anew for every batch are left out of the sums;
    if that is all of them, the virtual channels are zero. Weights belong to places, not to channels: those of one
    montage serve another. T is bound by the weights a_t.

    Source: Defossez et al., Nat. Mach. Intell. 2023 (brainmagick) with the settings of NeuralBench 2026: 3-D
    positions, width 320, 4 layers. Not given there, and so as in brainmagick: context of the gates, the last two
    convolutions, no scale on the residual branches.
    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: no positions, as many as there are not channels, or not finite; later, another C or T.
    """

    n_virtual, n_waves, margin, n_out = 270, 10, 0.2, 512

    place_C3: torch.Tensor
    features_CE: torch.Tensor

    def __init__(self, config: EegConfig, n_chans: int, n_times: int, positions_m: Positions) -> None:
        super().__init__()
        assert config.hidden is not None
        assert config.dropout_radius is not None
        self.name, self.n_chans, self.n_times = config.encoder, n_chans, n_times
        self.dropout_radius = config.dropout_radius
        place_C3 = _unit_cube(self.name, n_chans, positions_m)
        # Both follow from the montage, which is stored with the model, so they stay out of its weights.
        self.register_buffer("place_C3", place_C3, persistent=False)
        self.register_buffer("features_CE", self._features(place_C3), persistent=False)
        n_features = self.features_CE.shape[1]
        self.merge_OE = nn.Parameter(torch.randn(self.n_virtual, n_features) * n_features**-0.5)
        self.first = nn.Conv1d(self.n_virtual, self.n_virtual, 1)
        widths = (self.n_virtual, *[config.hidden] * 4)
        self.layers, self.gates = nn.ModuleList(), nn.ModuleList()
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            conv = nn.Conv1d(n_in, n_out, 3, padding=2**layer, dilation=2**layer)
            self.layers.append(nn.Sequential(conv, nn.BatchNorm1d(n_out), nn.GELU()))
            gated = nn.Sequential(nn.Conv1d(n_out, 2 * n_out, 3, padding=1), nn.GLU(dim=1))
            self.gates.append(gated if layer % 2 else nn.Identity())
        self.last = nn.Sequential(
            nn.Conv1d(config.hidden, 2 * config.hidden, 1), nn.GELU(), nn.Conv1d(2 * config.hidden, self.n_out, 1)
        )
        self.over_time = nn.Linear(n_times, 1)
        self.head = nn.Linear(self.n_out, config.embed_dim)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        require_segments(eeg_BCT, self.n_chans, self.n_times, self.name)
        is_short = self._is_first_run_shorter()
        x = eeg_BCT if is_short else self.first(self._merge_OC() @ eeg_BCT)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            y = self._first_layer(x) if is_short and layer is self.layers[0] else layer(x)
            x = gate(x + y if x.shape[1] == y.shape[1] else y)
        return self.head(self._last_run(x))

    def _is_first_run_shorter(self) -> bool:
        """Return whether merge, first convolution (1) and that of the first layer (3) are cheaper at once.

        All three are linear. Products for each sample: C O + O O + 3 O H layer by layer, 3 (C + 1) H at once, H the
        width of the layer: 349 k against 61 k at C = 63, H = 320. Where widths agree the layer also needs its input.
        """
        conv, _, _ = self._first_parts()
        n_inner, n_wide = self.n_virtual, conv.out_channels
        n_apart = n_inner * (self.n_chans + n_inner + 3 * n_wide)
        return (
            n_inner != n_wide
            and 3 * (self.n_chans + 1) * n_wide < n_apart
            and not is_watched([self.first, conv, self.layers[0]])
        )

    def _first_parts(self) -> tuple[nn.Conv1d, nn.Module, nn.Module]:
        layer = self.layers[0]
        assert isinstance(layer, nn.Sequential)
        conv, norm, gelu = layer
        assert isinstance(conv, nn.Conv1d)
        return conv, norm, gelu

    def _first_layer(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        """Return the output of the first layer, [B, H, T], of the segment itself."""
        conv, norm, gelu = self._first_parts()
        assert self.first.bias is not None
        # Products of weights are in float64, which autocast leaves alone.
        inner_OC = self.first.weight.squeeze(2).double() @ self._merge_OC().double()
        # The bias of the first convolution is one more channel, of ones: past the ends of the segment it is 0 too.
        inner_OX = torch.cat([inner_OC, self.first.bias.double()[:, None]], 1)
        kernel_HXK = torch.einsum("hok,ox->hxk", conv.weight.double(), inner_OX).to(eeg_BCT.dtype)
        eeg_BXT = F.pad(eeg_BCT, (0, 0, 0, 1), value=1.0)
        return gelu(norm(F.conv1d(eeg_BXT, kernel_HXK, conv.bias, padding=conv.padding, dilation=conv.dilation)))

    def _last_run(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum over time of `last`, [B, 512], taken before its last convolution (1), not after it.

        sum_t a_t (W y_t + c) + b  =  W (sum_t a_t y_t) + c (sum_t a_t) + b        a T-th of the products
        """
        widen, gelu, conv = self.last
        assert isinstance(conv, nn.Conv1d)
        assert conv.bias is not None
        if is_watched([conv, self.over_time]):
            return self.over_time(self.last(x)).squeeze(2)
        sum_BH = F.linear(gelu(widen(x)), self.over_time.weight).squeeze(2)
        constant = conv.bias * self.over_time.weight.sum() + self.over_time.bias
        return F.linear(sum_BH, conv.weight.squeeze(2)) + constant

    def _merge_OC(self) -> torch.Tensor:
        scores_OC = self.merge_OE @ self.features_CE.T
        if not (self.training and self.dropout_radius):
            return scores_OC.softmax(1)
        centre_3 = torch.rand(3, device=self.place_C3.device)
        is_out_C = (self.place_C3 - centre_3).norm(dim=1) <= self.dropout_radius
        weights_OC = scores_OC.masked_fill(is_out_C, torch.finfo(scores_OC.dtype).min).softmax(1)
        return weights_OC * ~is_out_C

    def _features(self, place_C3: torch.Tensor) -> torch.Tensor:
        waves = torch.arange(self.n_waves, dtype=torch.float32)
        waves_W3 = torch.cartesian_prod(waves, waves, waves)
        phase_CW = 2 * math.pi / (1 + 2 * self.margin) * ((place_C3 + self.margin) @ waves_W3.T)
        return torch.cat([phase_CW.cos(), phase_CW.sin()], 1)


def _unit_cube(name: str, n_chans: int, positions_m: Positions) -> torch.Tensor:
    """Return the positions scaled to [0, 1] along each axis, [C, 3]; 0.5 along an axis on which all are equal."""
    if len(positions_m) != n_chans:
        known = f"positions of {len(positions_m)}" if len(positions_m) else "none"
        raise InputError(
            f"eeg.encoder {name!r} needs the position of each of the {n_chans} channels and the data set has {known}; "
            "ingest it with 10-05 channel names or a montage, or choose an encoder that needs no positions"
        )
    place_C3 = torch.tensor([tuple(place) for place in positions_m], dtype=torch.float32)
    if place_C3.shape != (n_chans, 3) or not place_C3.isfinite().all():
        raise InputError(
            f"eeg.encoder {name!r} needs finite positions (x, y, z) in metres for each of the {n_chans} channels; "
            f"got {list(positions_m)[:3]} and so on; correct the montage of the data set"
        )
    low_3, high_3 = place_C3.amin(0), place_C3.amax(0)
    extent_3 = high_3 - low_3
    return torch.where(extent_3 > 0, (place_C3 - low_3) / extent_3.clamp(min=1e-12), torch.full_like(low_3, 0.5))
