"""Layers that let channels look at each other before the convolutions, [B, C, T] -> [B, C, T].

NICE's self-attention and graph attention, ATM's transformer. Of each there is what its paper describes (`published`)
and what its released code computes (`released`). Axes: B batch, C channels, T samples.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from eegvision.config import EegConfig
from eegvision.encoders.subjects import rows_of


class ChannelAttention(nn.Module):
    """NICE-SA: self-attention over channels, added to the segment.

        x' = LayerNorm_T(x);   A = softmax over m of Q K^T / sqrt(floor(T / 30)),   Q, K = drop(LayerNorm_C(W x'_t + b))
        published:  x + drop(project(A x'))         released:  x + drop(project(x'))

    Q, K and the projection map the C values of one sample to C values. The released code multiplies x' by the sum of
    each row of A, which is 1: its Q and K get no gradient beyond rounding and change nothing.

    Source: Song et al., ICLR 2024, and its released `eeg_encoder.py`.
    Shapes: [B, C, T] -> [B, C, T]; T >= 30, C >= 2 (of one value LayerNorm leaves nothing).
    """

    samples_per_step = 30

    def __init__(self, config: EegConfig, n_chans: int, n_times: int) -> None:
        super().__init__()
        assert config.channel_dropout is not None
        self.is_published = config.variant == "published"
        self.scale = (n_times // self.samples_per_step) ** -0.5
        self.norm = nn.LayerNorm(n_times)
        self.query, self.key, self.project = (
            nn.Sequential(nn.Linear(n_chans, n_chans), nn.LayerNorm(n_chans), nn.Dropout(config.channel_dropout))
            for _ in range(3)
        )
        self.drop = nn.Dropout(config.channel_dropout)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        normed_BCT = self.norm(eeg_BCT)
        normed_BTC = normed_BCT.transpose(1, 2)
        query_BCT, key_BTC = self.query(normed_BTC).transpose(1, 2), self.key(normed_BTC)
        weights_BCC = (query_BCT @ key_BTC * self.scale).softmax(-1)
        mixed_BCT = weights_BCC @ normed_BCT if self.is_published else normed_BCT * weights_BCC.sum(-1, keepdim=True)
        return eeg_BCT + self.drop(self.project(mixed_BCT.transpose(1, 2)).transpose(1, 2))


class GraphAttention(nn.Module):
    """NICE-GA: one head of graph attention between all channels, itself included, added to the segment.

        h = W x;   A_ij = softmax over j of LeakyReLU(a_to . h_i + a_from . h_j), slope 0.2
        published:  x + drop(A h + b)
        released:   the same for the first segment of a batch, x + drop(h + b) for the others

    W maps the T samples of a channel to T values. The released code lists edges between channels of the first segment
    only, so there a segment's embedding depends on its place in the batch, also in evaluation.

    Source: Song et al., ICLR 2024, its released `eeg_encoder.py` and `nice_v0.430_ga.py`; the layer is that of
    Velickovic et al., ICLR 2018, a_to and a_from drawn uniformly within sqrt(6 / (T + 1)).
    Shapes: [B, C, T] -> [B, C, T].
    """

    slope = 0.2

    def __init__(self, config: EegConfig, n_times: int) -> None:
        super().__init__()
        assert config.channel_dropout is not None
        self.is_published = config.variant == "published"
        self.weight = nn.Linear(n_times, n_times, bias=False)
        bound = (6 / (n_times + 1)) ** 0.5
        self.to_T = nn.Parameter(torch.empty(n_times).uniform_(-bound, bound))
        self.from_T = nn.Parameter(torch.empty(n_times).uniform_(-bound, bound))
        self.bias_T = nn.Parameter(torch.zeros(n_times))
        self.drop = nn.Dropout(config.channel_dropout)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        own_BCT = self.weight(eeg_BCT)
        n_mixed = len(eeg_BCT) if self.is_published else 1
        mixed_BCT = torch.cat([self._attend(own_BCT[:n_mixed]), own_BCT[n_mixed:]])
        return eeg_BCT + self.drop(mixed_BCT + self.bias_T)

    def _attend(self, own_BCT: torch.Tensor) -> torch.Tensor:
        scores_BCC = (own_BCT @ self.to_T).unsqueeze(2) + (own_BCT @ self.from_T).unsqueeze(1)
        weights_BCC = F.leaky_relu(scores_BCC, self.slope).softmax(-1)
        return weights_BCC.to(own_BCT.dtype) @ own_BCT


class ChannelTransformer(nn.Module):
    """ATM: one transformer layer whose tokens are a subject token and the channels, without position code.

        tokens = drop([s, W x_1, ..., W x_C]);   x = LN(x + drop(attention(x)));   x = LN(x + drop(FFN(x)));   LN(x)
        published:  the C channels' tokens         released:  the first C tokens, so s instead of the last channel

    Four heads of floor(T / 4), FFN T -> 256 -> T with GELU. The token s is one learned vector for all (as it comes to
    in the released code, whose subject numbers are the same for a whole run) or, where n_subjects are given, one each.

    Source: Li et al., NeurIPS 2024 (ATM), and its released `ATMS_retrieval.py`.
    Shapes: [B, C, T], rows [B] or nothing (`subjects.rows_of`) -> [B, C, T]; T >= 4.
    """

    n_heads, n_inner = 4, 256

    def __init__(self, config: EegConfig, n_chans: int, n_times: int, n_subjects: int) -> None:
        super().__init__()
        assert config.channel_dropout is not None
        self.n_chans, self.dropout = n_chans, config.channel_dropout
        self.first = 1 if config.variant == "published" else 0
        n_attended = self.n_heads * (n_times // self.n_heads)
        self.embed = nn.Linear(n_times, n_times)
        self.tokens_S1T = nn.Parameter(torch.randn(max(1, n_subjects), 1, n_times))
        self.query, self.key, self.value = (nn.Linear(n_times, n_attended) for _ in range(3))
        self.attended = nn.Linear(n_attended, n_times)
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(n_times) for _ in range(3))
        self.inner, self.outer = nn.Linear(n_times, self.n_inner), nn.Linear(self.n_inner, n_times)
        self.drop = nn.Dropout(config.channel_dropout)

    def forward(self, eeg_BCT: torch.Tensor, subject_B: torch.Tensor | None = None) -> torch.Tensor:
        embedded_BCT = self.embed(eeg_BCT)
        token_B1T = rows_of(self.tokens_S1T, subject_B).to(embedded_BCT.dtype).expand(len(eeg_BCT), 1, -1)
        x_BNT = self.drop(torch.cat([token_B1T, embedded_BCT], 1))
        x_BNT = self.norm_1(x_BNT + self.drop(self._attend(x_BNT)))
        x_BNT = self.norm_2(x_BNT + self.drop(self.outer(self.drop(F.gelu(self.inner(x_BNT))))))
        return self.norm_3(x_BNT)[:, self.first : self.first + self.n_chans]

    def _attend(self, x_BNT: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x_BNT).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.attended(mixed.transpose(1, 2).flatten(2))
