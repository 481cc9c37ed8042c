"""Layers that are linear next to each other, computed as one: the same numbers from fewer operations.

Both classes hold the published layers in order under their usual names, so weights, starting values and checkpoints
are those of a plain `nn.Sequential`; only `forward` takes another way, in training and in evaluation. What a batch
normalisation needs of a linear map it gets without the map's output: with windows u of the input and y = w . u + b,

    mean(y) = w . mean(u) + b,   var(y) = w' Cov(u) w,   norm(y) = a w . u + shift + a (b - mean(y)),   a = scale / std

Cov(u), and weights multiplied together, are in float64: filters that take differences of smooth signals cancel nearly
all of w' Cov(u) w, and autocast leaves float64 alone. The bias b cancels wherever statistics are those of the batch;
its gradient is exactly 0 there, where layer by layer it is rounding.

Layer by layer is also what happens where somebody listens to a layer (hooks), or the normalisation is another one, of
all processes together for example.
Axes: B batch, C channels, T samples, F filters of the first convolution, O of the second, K taps, S steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PooledTemporal(nn.Sequential):
    """Mean pool (1 x P, stride 1), conv (1 x K, stride L), BatchNorm, ELU, conv (C x 1), then any layers.

    Products per segment, published against here, for TSConv at C = 63, T = 250, F = O = 40, S = 36:

        conv (1 x 25) at every sample, then pool:  226 C F K = 14.2 M, and 226 C F = 0.6 M values to keep
        here:  pool as a product with ones  C T (T - P + 1) = 3.2 M;   S C F K = 2.3 M;   Cov  T C L K = 0.4 M

    Values stay filter-last, [B, S, C, F], from the first convolution to the second, so that both are single matrix
    products over all segments; between them there is the ELU alone.
    Shapes: [B, 1, C, T] -> what the last layer gives, as with `nn.Sequential`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        pool, temporal, norm, elu, spatial = list(self)[:5]
        if is_watched(self) or type(norm) is not nn.BatchNorm2d:
            return super().forward(input)
        assert isinstance(pool, nn.AvgPool2d)
        assert isinstance(pool.kernel_size, tuple)
        assert isinstance(temporal, nn.Conv2d)
        assert isinstance(spatial, nn.Conv2d)
        n_taps, stride, width = temporal.kernel_size[1], temporal.stride[1], pool.kernel_size[1]
        pooled_BCT = _sliding_sum(input.squeeze(1), width) / width
        window_BSCK = pooled_BCT.unfold(2, n_taps, stride).transpose(1, 2)
        kernel_FK, bias_F = _normalised(temporal, norm, pooled_BCT)
        maps_BSCF = elu(F.linear(window_BSCK, kernel_FK.to(input.dtype), bias_F.to(input.dtype)))
        weight_OCF = spatial.weight.squeeze(3).transpose(1, 2)
        maps_BSO = F.linear(maps_BSCF.flatten(2), weight_OCF.flatten(1), spatial.bias)
        # Contiguous as a convolution leaves it: dropout draws in the order of memory.
        maps = maps_BSO.transpose(1, 2).unsqueeze(2).contiguous()
        for layer in list(self)[5:]:
            maps = layer(maps)
        return maps


class TemporalSpatial(nn.Sequential):
    """Conv (1 x K), BatchNorm or nothing, conv (C x 1), then any layers.

    Both convolutions are one of C inputs, k[o,c,t] = sum over f of s[o,f,c] a_f w[f,t]. Products per segment and step:

        layer by layer  C F K + C F O, and C F values to keep        at once  C O K, and none

    which at C = 63 are 164 k against 63 k in NICE's ShallowNet and 55 k against 16 k in its DeepNet.
    Shapes: [B, 1, C, T] -> what the last layer gives, as with `nn.Sequential`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        layers = list(self)
        temporal, norm = layers[0], layers[1] if isinstance(layers[1], nn.BatchNorm2d) else None
        spatial, after = (layers[1], layers[2:]) if norm is None else (layers[2], layers[3:])
        if is_watched(self) or not isinstance(spatial, nn.Conv2d) or type(norm) not in (nn.BatchNorm2d, type(None)):
            return super().forward(input)
        assert isinstance(temporal, nn.Conv2d)
        eeg_BCT = input.squeeze(1)
        if norm is None:
            assert temporal.bias is not None
            kernel_FK, bias_F = temporal.weight.flatten(1).double(), temporal.bias.double()
        else:
            kernel_FK, bias_F = _normalised(temporal, norm, eeg_BCT)
        weight_OFC = spatial.weight.squeeze(3).double()
        kernel_OCK = torch.einsum("ofc,fk->ock", weight_OFC, kernel_FK)
        assert spatial.bias is not None
        bias_O = spatial.bias + weight_OFC.sum(2) @ bias_F
        maps = F.conv1d(eeg_BCT, kernel_OCK.to(input.dtype), bias_O.to(input.dtype)).unsqueeze(2)
        for layer in after:
            maps = layer(maps)
        return maps


def is_watched(layers: Iterable[nn.Module]) -> bool:
    """Return whether a hook waits for what one of these layers takes or gives, so that each has to be called."""
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in layers
    )


def _sliding_sum(rows_BCT: Tensor, width: int) -> Tensor:
    """Return the sums of `width` neighbours, [B, C, T - width + 1]: a product with a band of ones.

    On a CPU this takes a quarter of the time of `avg_pool1d`, which adds up each window anew and value by value.
    """
    n_times = rows_BCT.shape[2]
    n_sums = n_times - width + 1
    return rows_BCT @ rows_BCT.new_ones(n_times, n_sums).tril().triu(1 - width)


def _normalised(conv: nn.Conv2d, norm: nn.BatchNorm2d, rows_BCT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel [F, K] and bias [F], float64, of a convolution (1 x K) over rows with its BatchNorm.

    In training the running statistics move, as if the maps had passed through the layer.
    """
    kernel_FK = conv.weight.flatten(1).double()
    bias_F = kernel_FK.new_zeros(len(kernel_FK)) if conv.bias is None else conv.bias.double()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.training:
        mean_K, cov_KK, n = window_moments(rows_BCT, conv.kernel_size[1], conv.stride[1])
        mean_F = kernel_FK @ mean_K + bias_F
        var_F = ((kernel_FK @ cov_KK) * kernel_FK).sum(1)
        _move(norm, mean_F.detach(), var_F.detach(), n)
    else:
        mean_F, var_F = norm.running_mean.double(), norm.running_var.double()
    factor_F = norm.weight * (var_F + norm.eps).rsqrt()
    return factor_F[:, None] * kernel_FK, norm.bias + factor_F * (bias_F - mean_F)


def window_moments(rows_BCT: Tensor, n_taps: int, stride: int) -> tuple[Tensor, Tensor, int]:
    """Return mean [K], population covariance [K, K] (float64) and number of all windows of the rows, S of each.

        E[u_i u_j],  i = L a + r, j = i + lag:   sum over steps s of  M[s + a],   M[t] = x[L t + r] x[L t + r + lag]

    Windows overlap, so M, summed over B and C, is the same for many (i, j): T K products a row instead of S K K, where
    the stride L divides K, as it does in TSConv (5, 25) and wherever it is 1.
    """
    assert n_taps % stride == 0, (n_taps, stride)
    n_steps, n_blocks = (rows_BCT.shape[2] - n_taps) // stride + 1, n_taps // stride
    n_used = (n_steps + n_blocks - 1) * stride
    # Samples first, and zeros behind the last so that every block finds K of them.
    used_TN = F.pad(rows_BCT.flatten(0, 1).T[:n_used].double(), (0, 0, 0, n_taps - stride)).contiguous()
    n = n_steps * used_TN.shape[1]
    mean_K = used_TN[:n_used].sum(1).unfold(0, n_steps * stride - stride + 1, 1)[:, ::stride].sum(1) / n
    products = used_TN[:n_used].unflatten(0, (n_blocks + n_steps - 1, stride)) @ used_TN.unfold(0, n_taps, stride)
    sums_LAK = products.unfold(0, n_steps, 1).sum(3).transpose(0, 1)
    # Row a belongs a * L columns further right: rows wider by L than what they are read back as.
    skewed = F.pad(sums_LAK, (0, n_taps)).flatten(1)[:, : n_blocks * (2 * n_taps - stride)]
    upper_KK = skewed.unflatten(1, (n_blocks, 2 * n_taps - stride))[..., :n_taps].transpose(0, 1).flatten(0, 1).triu()
    return mean_K, (upper_KK + upper_KK.triu(1).T) / n - torch.outer(mean_K, mean_K), n


@torch.no_grad()
def _move(norm: nn.BatchNorm2d, mean_F: Tensor, var_F: Tensor, n: int) -> None:
    """Let the running statistics take a step towards those of a batch of n values, as `nn.BatchNorm2d` does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    factor = 1 / norm.num_batches_tracked.double() if norm.momentum is None else norm.momentum
    for running_F, new_F in ((norm.running_mean, mean_F), (norm.running_var, var_F * (n / max(1, n - 1)))):
        running_F.mul_(1 - factor).add_(factor * new_F.to(running_F.dtype))
