"""What an encoder learns for each subject apart: rows of a table, chosen by the subject of each segment."""

from __future__ import annotations

import torch
from torch import nn

from eegvision.encoders.bounds import require_segments


def rows_of(table_S: torch.Tensor, subject_B: torch.Tensor | None) -> torch.Tensor:
    """Return each segment's row of a table with a row per subject, or the mean of all rows for subjects without one.

    `subject_B` holds rows of the table, int64, and -1 for a subject that was not in training; none given means that
    for every segment. Shapes: [S, ...], [B] -> [B, ...], or [1, ...] where no subjects are given.
    """
    mean_1 = table_S.mean(0, keepdim=True)
    return mean_1 if subject_B is None else torch.cat([table_S, mean_1])[subject_B]


class SubjectLayer(nn.Module):
    """A linear map of the channels for each subject in front of an encoder that all subjects share.

        y = encoder(W_s x)                W_s: C x C, the identity at the start

    Source: Defossez et al., Nat. Mach. Intell. 2023, whose maps start at random and come after the electrodes are
    merged; at the identity the encoder starts as the one without such a layer.
    Shapes: [B, C, T], rows [B] or nothing (`rows_of`) -> [B, D].
    Raises:
        InputError: as the encoder.
    """

    def __init__(self, encoder: nn.Module, n_chans: int, n_subjects: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.maps_SCC = nn.Parameter(torch.eye(n_chans).repeat(n_subjects, 1, 1))

    def forward(self, eeg_BCT: torch.Tensor, subject_B: torch.Tensor | None = None) -> torch.Tensor:
        require_segments(eeg_BCT, self.maps_SCC.shape[1])
        return self.encoder(rows_of(self.maps_SCC, subject_B) @ eeg_BCT)
