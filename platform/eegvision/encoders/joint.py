"""The joint model: an EEG encoder and an image encoder that embed a segment and its image into one space.

Or one of the two alone with a linear classifier, the arms that a joint model is compared with.
Axes: B batch, D embedding, F frozen features, K classes; X is [F], or [3, H, W] of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision import checkpoint
from eegvision.config import ImageConfig, LossConfig, RunConfig
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.encoders.frozen import build_backbone, build_projector
from eegvision.encoders.image import build_image_encoder, require_size
from eegvision.encoders.simple_conv import Positions
from eegvision.losses import similarity_scale
from eegvision.vocab import InputError

# CLIP's limit on a learned scale: beyond a temperature of 0.01 the softmax is a maximum and gradients die out.
_MAX_SCALE = 100.0
MAX_LOG_SCALE = math.log(_MAX_SCALE)

# SigLIP's start: with nearly all pairs negative, a bias of 0 would begin with a large loss on each of them.
_SIGLIP_BIAS = -10.0


class Pairs(NamedTuple):
    """What a loss needs of a batch of pairs: both embeddings, and its factor and bias on compatibilities."""

    eeg_BD: Tensor
    image_BD: Tensor
    scale: Tensor
    bias: Tensor


class JointModel(nn.Module):
    """Two encoders and the compatibility of what they give; or, in an arm, one encoder and a classifier.

        F(e, v) = φ(e) · θ(v)          Palazzo et al., arXiv 1810.10974, Eq. 1; with unit lengths it is the cosine

    Attributes:
        config: what the model was made from; `config.image.resolved().size_px` is the image side it is meant for.
        data: what it knows of its data: `n_chans`, `n_times`, `sfreq_hz`, `positions_m` of the electrodes, names of
            the `subjects` in training, `n_features` (F, 0 where the image encoder is trained) and `n_classes`; after
            `load` also `channels`, `classes` and whatever else the run recorded.
        eeg: φ, [B, C, T] -> [B, D]; None where images are classified alone.
        image: θ, [B, 3, H, W] -> [B, D], or [B, F] -> [B, D] where features are frozen; None where EEG is classified
            alone.
        classifier: of an arm, [B, D] -> [B, K]; None where both encoders are trained.
        log_scale, bias: scalars of the loss, `log_scale` the p of `losses.similarity_scale`; parameters where it
            learns them, buffers where they are constants (a parameter that gets no gradient would stall distributed
            training).
    """

    log_scale: Tensor
    bias: Tensor

    def __init__(
        self, config: RunConfig, eeg: nn.Module | None, image: nn.Module | None, data: Mapping[str, Any]
    ) -> None:
        super().__init__()
        loss = config.loss.resolved()
        self.config, self.data = config, dict(data)
        self.eeg, self.image = eeg, image
        self.classifier: nn.Linear | None = None
        if loss.arm != "joint":
            side = config.eeg if loss.arm == "eeg" else config.image
            self.classifier = nn.Linear(side.embed_dim, data["n_classes"])
        self._normalise_eeg, self._normalise_image = bool(loss.normalise_eeg), bool(loss.normalise_image)
        self._scale_form: Literal["exp", "raw", "softplus"] = loss.scale or "exp"
        _check_scale(loss)
        p = 0.0 if loss.temperature is None else math.log(1.0 / loss.temperature)
        self._add_scalar("log_scale", p, learned=bool(loss.learn_temperature))
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
            n_features=data.get("n_features", 0),
            n_classes=data.get("n_classes", 0),
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
            InputError: another number of channels, or of samples where the encoder is bound to one; or the model
                knows images alone.
        """
        if self.eeg is None:
            raise InputError(f"a model of loss.name {self.config.loss.name!r} has no EEG encoder; load a joint one")
        knows_subjects = self.config.eeg.subjects is not None
        embedding_BD = (self.eeg(eeg_BCT, subject_B) if knows_subjects else self.eeg(eeg_BCT)).float()
        return F.normalize(embedding_BD, dim=1) if self._normalise_eeg else embedding_BD

    def encode_image(self, image_BX: Tensor) -> Tensor:
        """Return θ(v) [B, D] in float32, of unit length where the loss compares directions.

        Images are pixels [B, 3, H, W], normalised as in batches; or, where features are frozen, these [B, F] as well.

        Raises:
            InputError: not three colours, too few pixels for the encoder, another number of features, or pixels where
                features come from no network; or the model knows EEG alone.
        """
        if self.image is None:
            raise InputError(f"a model of loss.name {self.config.loss.name!r} has no image encoder; load a joint one")
        is_frozen, shape = self.config.image.is_frozen, tuple(image_BX.shape)
        if is_frozen and len(shape) == 2:
            if shape[1] != self.data["n_features"]:
                raise InputError(f"images have {shape[1]} features; the model takes {self.data['n_features']}")
        elif len(shape) != 4 or shape[1] != 3:
            also = f", or features [B, {self.data['n_features']}]" if is_frozen else ""
            raise InputError(f"images of shape {shape} given; expected [B, 3, H, W]{also}")
        elif is_frozen:
            image_BX = self.backbone.to(image_BX.device)(image_BX)
        else:
            require_size(self.config.image.encoder, min(shape[2:]))
        embedding_BD = self.image(image_BX).float()
        return F.normalize(embedding_BD, dim=1) if self._normalise_image else embedding_BD

    @cached_property
    def backbone(self) -> nn.Module:
        """The frozen network from pixels to features, made when it is first asked for.

        It is no part of the state: the configuration says which network it is and where its weights come from.

        Raises:
            InputError: there is no such network, or its weights cannot be had.
        """
        encoder = self.config.image.encoder
        if encoder in ("file", "random-codebook"):
            raise InputError(
                f"features of image.encoder {encoder!r} come from no network, so pixels cannot be encoded; "
                "give features [B, F], or train on those of a network"
            )
        return build_backbone(self.config.image)

    def classify(self, embedding_BD: Tensor) -> Tensor:
        """Return the logits [B, K] of the classes for embeddings of the one encoder of an arm, in float32.

        Raises:
            InputError: the model is a joint one.
        """
        if self.classifier is None:
            raise InputError("a joint model has no classifier; train a probe on its embeddings (evaluate.probes)")
        return self.classifier(embedding_BD).float()

    def compatibility(self, eeg_BCT: Tensor, image_BX: Tensor, subject_B: Tensor | None = None) -> Tensor:
        """Return F(e_i, v_i) for each row i, [B]."""
        return (self.encode_eeg(eeg_BCT, subject_B) * self.encode_image(image_BX)).sum(1)

    @property
    def scale(self) -> Tensor:
        """Factor of the loss on compatibilities."""
        return similarity_scale(self.log_scale, self._scale_form)

    def forward(
        self, eeg_BCT: Tensor | None, image_BX: Tensor | None, subject_B: Tensor | None = None
    ) -> Pairs | Tensor:
        """Return what the loss needs: pairs and its scalars, or in an arm the logits [B, K].

        An arm has no use for the other side's input, which may be None. A learned scale of the form `exp` is at most
        100.
        """
        if self.image is None:
            assert eeg_BCT is not None, "EEG is to be classified"
            return self.classify(self.encode_eeg(eeg_BCT, subject_B))
        assert image_BX is not None, "batches come without images"
        if self.eeg is None:
            return self.classify(self.encode_image(image_BX))
        assert eeg_BCT is not None, "EEG is to be compared with images"
        if isinstance(self.log_scale, nn.Parameter) and self._scale_form == "exp":
            with torch.no_grad():  # the value, not the gradient: a scale at the limit must be able to come back
                self.log_scale.clamp_(max=MAX_LOG_SCALE)
        eeg_BD, image_BD = self.encode_eeg(eeg_BCT, subject_B), self.encode_image(image_BX)
        return Pairs(eeg_BD, image_BD, self.scale, self.bias)

    def _add_scalar(self, name: str, value: float, *, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        else:
            self.register_buffer(name, torch.tensor(value))


def _check_scale(loss: LossConfig) -> None:
    """Refuse a temperature with which a scale could not begin."""
    if loss.temperature is None:
        return
    if loss.scale == "exp" and loss.learn_temperature and loss.temperature < 1 / _MAX_SCALE:
        raise InputError(
            f"loss.temperature {loss.temperature:g} is to be learned, but a learned one stays above "
            f"{1 / _MAX_SCALE:g}; start higher, or set loss.learn_temperature to false"
        )
    if loss.scale == "raw" and loss.temperature >= 1:
        raise InputError(
            f"loss.temperature {loss.temperature:g} with loss.scale 'raw' begins at a factor of "
            f"{-math.log(loss.temperature):g}, which rewards wrong pairs; take a temperature below 1"
        )


def build_joint(
    config: RunConfig,
    n_chans: int,
    n_times: int,
    sfreq_hz: float,
    *,
    positions_m: Positions = (),
    subjects: Sequence[str] = (),
    n_features: int = 0,
    n_classes: int = 0,
) -> JointModel:
    """Return the model a run starts from, for segments of this shape and rate.

    `positions_m` are the electrodes' head coordinates in metres and `subjects` the names of those in training, for
    EEG encoders that need them (`build_eeg_encoder`); `n_features` is the size of frozen image features, `n_classes`
    the number of classes an arm tells apart. All stay with the model, so that a checkpoint can be loaded.

    Raises:
        InputError: an encoder cannot take these sizes, needs positions or subjects and there are none, the image
            weights cannot be had, frozen features have no size, or an arm has fewer than two classes.
    """
    arm = config.loss.arm
    if arm != "joint" and n_classes < 2:
        raise InputError(
            f"loss.name {config.loss.name!r} tells classes apart, but the data set has {n_classes}; "
            "it needs at least 2; train a joint model, or ingest the data with labels"
        )
    eeg, image = None, None
    if arm != "image":
        n_subjects = len(subjects)
        eeg = build_eeg_encoder(config.eeg, n_chans, n_times, sfreq_hz, positions_m=positions_m, n_subjects=n_subjects)
    if arm != "eeg":
        image = _image_side(config.image, n_features)
    data = {
        "n_chans": n_chans,
        "n_times": n_times,
        "sfreq_hz": sfreq_hz,
        "positions_m": [list(place) for place in positions_m],
        "subjects": list(subjects),
        "n_features": n_features,
        "n_classes": n_classes,
    }
    return JointModel(config, eeg, image, data)


def _image_side(config: ImageConfig, n_features: int) -> nn.Module:
    if not config.is_frozen:
        return build_image_encoder(config)
    if n_features < 1:
        raise InputError(f"image.encoder {config.encoder!r} is frozen; give build_joint the size of its features")
    return build_projector(config, n_features)
