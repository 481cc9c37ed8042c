"""The joint model: an EEG encoder and an image encoder that embed a segment and its image into one space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision import checkpoint
from eegvision.config import RunConfig
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.encoders.image import build_image_encoder, require_size
from eegvision.encoders.simple_conv import Positions
from eegvision.vocab import InputError

# CLIP's limit on a learned scale: beyond a temperature of 0.01 the softmax is a maximum and gradients die out.
_MAX_SCALE = 100.0

# SigLIP's start: with nearly all pairs negative, a bias of 0 would begin with a large loss on each of them.
_SIGLIP_BIAS = -10.0


class JointModel(nn.Module):
    """Two encoders and the compatibility of what they give.

        F(e, v) = φ(e) · θ(v)          Palazzo et al., arXiv 1810.10974, Eq. 1; with unit lengths it is the cosine

    Attributes:
        config: what the model was made from; `config.image.resolved().size_px` is the image side it is meant for.
        data: what it knows of its data: `n_chans`, `n_times`, `sfreq_hz`, `positions_m` of the electrodes and names of
            the `subjects` in training; after `load` also `channels`, `classes` and whatever else the run recorded.
        eeg, image: the encoders φ and θ, [B, C, T] -> [B, D] and [B, 3, H, W] -> [B, D].
        log_scale, bias: scalars of the loss; parameters where it learns them, buffers where they are constants
            (a parameter that gets no gradient would stall distributed training).
    """

    log_scale: Tensor
    bias: Tensor

    def __init__(self, config: RunConfig, eeg: nn.Module, image: nn.Module, data: Mapping[str, Any]) -> None:
        super().__init__()
        loss = config.loss.resolved()
        self.config, self.data = config, dict(data)
        self.eeg, self.image = eeg, image
        self._normalise_eeg, self._normalise_image = bool(loss.normalise_eeg), bool(loss.normalise_image)
        scale = 1.0 if loss.temperature is None else 1.0 / loss.temperature
        if loss.learn_temperature and scale > _MAX_SCALE:
            raise InputError(
                f"loss.temperature {loss.temperature:g} is to be learned, but a learned one stays above "
                f"{1 / _MAX_SCALE:g}; start higher, or set loss.learn_temperature to false"
            )
        self._add_scalar("log_scale", math.log(scale), learned=bool(loss.learn_temperature))
        is_siglip = loss.name == "siglip"
        self._add_scalar("bias", _SIGLIP_BIAS if is_siglip else 0.0, learned=is_siglip and bool(loss.learn_temperature))

    @staticmethod
    def load(path: Path | str) -> JointModel:
        """Return the model of a checkpoint folder, on the CPU and in evaluation mode.

        Raises:
            CheckpointError: the checkpoint is damaged.
            InputError: it was written by a version whose model has other parts.
        """
        tensors, state = checkpoint.load(Path(path).expanduser())
        config, data = RunConfig.from_dict(state["config"]), state["data"]
        # The weights are in the checkpoint, so the file that the run began with need not be there any more.
        random = config.with_overrides({"image.weights": "none"})
        model = build_joint(
            random,
            data["n_chans"],
            data["n_times"],
            data["sfreq_hz"],
            positions_m=data.get("positions_m", ()),
            subjects=data.get("subjects", ()),
        )
        model.config, model.data = config, data
        try:
            model.load_state_dict(tensors["model"])
        except RuntimeError as error:
            raise InputError(f"{path} was written by another version of eegvision: {error}") from error
        return model.eval()

    def subject_rows(self, names: Sequence[str]) -> Tensor:
        """Return the rows [B] of these subjects in what the model learned for each apart; -1 for one it never saw."""
        row_of = {name: row for row, name in enumerate(self.data.get("subjects", ()))}
        return torch.tensor([row_of.get(name, -1) for name in names], dtype=torch.int64)

    def encode_eeg(self, eeg_BCT: Tensor, subject_B: Tensor | None = None) -> Tensor:
        """Return φ(e) [B, D] in float32, of unit length where the loss compares directions.

        `subject_B` (`subject_rows`) changes the result only where `config.eeg.subjects` is set; without it the model
        takes the mean over its subjects.

        Raises:
            InputError: another number of channels, or of samples where the encoder is bound to one.
        """
        knows_subjects = self.config.eeg.subjects is not None
        embedding_BD = (self.eeg(eeg_BCT, subject_B) if knows_subjects else self.eeg(eeg_BCT)).float()
        return F.normalize(embedding_BD, dim=1) if self._normalise_eeg else embedding_BD

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """Return θ(v) [B, D] in float32, of unit length where the loss compares directions.

        Raises:
            InputError: not three colours, or too few pixels for the encoder.
        """
        if image_B3HW.ndim != 4 or image_B3HW.shape[1] != 3:
            raise InputError(f"images of shape {tuple(image_B3HW.shape)} given; expected [B, 3, H, W]")
        require_size(self.config.image.encoder, min(image_B3HW.shape[2:]))
        embedding_BD = self.image(image_B3HW).float()
        return F.normalize(embedding_BD, dim=1) if self._normalise_image else embedding_BD

    def compatibility(self, eeg_BCT: Tensor, image_B3HW: Tensor, subject_B: Tensor | None = None) -> Tensor:
        """Return F(e_i, v_i) for each row i, [B]."""
        return (self.encode_eeg(eeg_BCT, subject_B) * self.encode_image(image_B3HW)).sum(1)

    def forward(
        self, eeg_BCT: Tensor, image_B3HW: Tensor, subject_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a loss needs: eeg_BD, image_BD, and the scalars scale (at most 100 if learned) and bias."""
        if isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():  # the value, not the gradient: a scale at the limit must be able to come back
                self.log_scale.clamp_(max=math.log(_MAX_SCALE))
        eeg_BD, image_BD = self.encode_eeg(eeg_BCT, subject_B), self.encode_image(image_B3HW)
        return eeg_BD, image_BD, self.log_scale.exp(), self.bias

    def _add_scalar(self, name: str, value: float, *, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        else:
            self.register_buffer(name, torch.tensor(value))


def build_joint(
    config: RunConfig,
    n_chans: int,
    n_times: int,
    sfreq_hz: float,
    *,
    positions_m: Positions = (),
    subjects: Sequence[str] = (),
) -> JointModel:
    """Return the model a run starts from, for segments of this shape and rate.

    `positions_m` are the electrodes' head coordinates in metres and `subjects` the names of those in training, for
    EEG encoders that need them (`build_eeg_encoder`); both stay with the model, so that a checkpoint can be loaded.

    Raises:
        InputError: an encoder cannot take these sizes, needs positions or subjects and there are none, or the image
            weights cannot be had.
    """
    eeg = build_eeg_encoder(config.eeg, n_chans, n_times, sfreq_hz, positions_m=positions_m, n_subjects=len(subjects))
    image = build_image_encoder(config.image)
    data = {
        "n_chans": n_chans,
        "n_times": n_times,
        "sfreq_hz": sfreq_hz,
        "positions_m": [list(place) for place in positions_m],
        "subjects": list(subjects),
    }
    return JointModel(config, eeg, image, data)
