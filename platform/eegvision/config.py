"""What a run is: frozen, keyword-only dataclasses up to `RunConfig`, checked when made.

A field that only some encoders or losses have is `None` by default, which means "the published value"
(`resolved()` fills it in); setting it where it does not apply is an error, so no setting is ever ignored.
Sizes known only from data (channels, samples, rate, classes) are not here: they come from the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from eegvision.overrides import SPEED_ONLY, changes_results, filled, flatten, replaced, require, require_applicable
from eegvision.vocab import InputError, SplitRule

EegEncoderName = Literal[
    "palazzo-lstm", "palazzo-gru", "tsconv", "nice-sa", "nice-ga", "nice-shallow", "nice-deep", "nice-eegnet", "atm-s",
    "eeg-project", "eeg-channelnet", "perceivelab-lstm", "simple-conv",
    "braindecode-eegnet", "braindecode-shallow", "braindecode-deep4", "braindecode-conformer",
]  # fmt: skip
ImageEncoderName = Literal[
    "small", "alexnet", "resnet18", "resnet50", "resnet101", "densenet161", "inception_v3", "vit_b_16",
    "convnext_tiny", "convnext_base", "timm", "open_clip", "file", "random-codebook",
]  # fmt: skip
LossName = Literal["triplet", "info_nce", "siglip", "eeg-classes", "image-classes"]
Arm = Literal["joint", "eeg", "image"]
Place = Literal["cpu", "quarter-gpu", "half-gpu", "gpu", "two-gpus", "four-gpus"]
MetricName = Literal["val/loss", "val/top1", "val/top5", "val/class_top1", "val/accuracy"]

# Published values of the fields that only some choices have: {choice: {field: value}}.
EEG_DEFAULTS: dict[str, dict[str, Any]] = {
    "palazzo-lstm": {"channels": "shared", "hidden": 256},
    "palazzo-gru": {"channels": "shared", "hidden": 256},
    "tsconv": {"filters": 40, "dropout": 0.5},
    "nice-sa": {"variant": "published", "filters": 40, "dropout": 0.5, "channel_dropout": 0.3},
    "nice-ga": {"variant": "published", "filters": 40, "dropout": 0.5, "channel_dropout": 0.3},
    "nice-shallow": {"dropout": 0.5},
    "nice-deep": {"dropout": 0.5},
    "nice-eegnet": {"dropout": 0.5},
    "atm-s": {"variant": "published", "filters": 40, "dropout": 0.5, "channel_dropout": 0.25},
    "eeg-project": {"dropout": 0.3},
    "eeg-channelnet": {"variant": "published", "blocks": 4, "dropout": 0.2},
    "perceivelab-lstm": {"hidden": 128},
    "simple-conv": {"hidden": 320, "dropout_radius": 0.2},
    "braindecode-eegnet": {"dropout": 0.25},
    "braindecode-shallow": {"dropout": 0.5},
    "braindecode-deep4": {"dropout": 0.5},
    "braindecode-conformer": {"dropout": 0.5},
}
_CONTRAST = {
    "learn_temperature": True, "scale": "exp", "normalise_eeg": True, "normalise_image": True,
    "duplicates": "left-out", "text_weight": 0.0, "mse_weight": 0.0, "centre_weight": 0.0,
}  # fmt: skip
LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
    "triplet": {
        "margin": 0.0, "negatives": "random", "normalise_eeg": False, "normalise_image": False,
        "duplicates": "left-out", "text_weight": 0.0, "mse_weight": 0.0, "centre_weight": 0.0,
    },
    "info_nce": {"temperature": 0.07, "direction": "both", **_CONTRAST},
    "siglip": {"temperature": 0.1, **_CONTRAST},
    "eeg-classes": {},
    "image-classes": {},
}  # fmt: skip
IMAGE_SIZES_PX: dict[str, int] = {"small": 64, "inception_v3": 299}
"""Side of the square input; 224 where not named."""
ALWAYS_FROZEN = ("timm", "open_clip", "file", "random-codebook")
"""Image encoders that are never trained: their features are made once."""
_NO_LAYERS = ("file", "random-codebook")
_FROZEN_DEFAULTS: dict[str, Any] = {"layer": "last", "pooling": "mean", "blur_px": 0.0, "foveal": 0.0}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, split how, presented how."""

    dataset: str = "demo"
    """Name under `EEGVISION_HOME/datasets`, or a path."""
    split: SplitRule = "by-image"
    """Rule that sends every image to one of train, val and test."""
    val_fraction: float = 0.1
    """Share of images (or concepts) for validation, in (0, 1)."""
    test_fraction: float = 0.1
    """Share of images (or concepts) for test, in (0, 1)."""
    split_seed: int = 0
    """Seed of the split, apart from the run's seed so that several seeds share one split."""
    held_out: str | None = None
    """Subject of `leave-subject-out` (and, if given, of `zero-shot` and `concept-disjoint`); number for
    `leave-block-out` and `leave-session-out`, or a fold of the blocks for validation, such as `2/5 of by-image`."""
    purge_s: float | None = None
    """Training segments leave at least this many seconds between their window and any validation or test window of
    the same recording, >= 0; `time-purged` needs it, other rules take it as well."""
    subjects: tuple[str, ...] = ()
    """Subjects to use; none named means all."""
    channels: tuple[str, ...] = ()
    """Channels to read, by name or pattern such as `O*`, in the data set's order; none named means all."""
    window_s: tuple[float, float] | None = None
    """Samples to read: from (included) to (not included), in seconds after stimulus onset; by default all."""
    repetitions: int = 1
    """Presentations of a picture to a subject that are averaged into one sample: 1 takes each by itself, k draws k of
    them anew every pass (the same ones for validation), 0 averages all."""
    val_repetitions: int | None = None
    """The same for validation and test; by default as in training."""
    normalise: Literal["segment-zscore", "none"] = "segment-zscore"
    """Per segment and channel: subtract the mean, divide by the standard deviation; or leave as stored."""
    band_hz: tuple[float, float] | None = None
    """After normalisation keep only the cosines (DCT-II) of a segment from the first (included) to the second (not
    included) of these frequencies; by default all."""
    labelled: float = 1.0
    """Share of the training pictures of each class whose class classifiers and probes are told, in (0, 1]; training
    on pairs needs none."""
    control: Literal["shuffled-pairs", "shuffled-in-blocks", "block-labels", "class-codes"] | None = None
    """What is broken on purpose, to see what a score is made of: pictures trade segments within subject and side;
    the same within recording blocks too; pictures given out as a block design would have, class after class in time;
    EEG replaced by one random pattern per class. By default nothing."""
    crops: Literal["ten", "centre"] | None = None
    """Training views: one of ten crops (corners, centre, mirrors) of a 1.1x image drawn anew each pass (by default,
    where the image encoder is trained), or the central crop alone. Validation always sees the central crop."""
    residency: Literal["auto", "device", "host", "stream"] = field(default="auto", metadata=SPEED_ONLY)
    """Where segments live after the first pass; `auto` takes the fastest place they fit."""
    storage: Literal["float16"] | None = None
    """What normalised segments are kept as, in memory and on the device: float16 takes half the room and rounds every
    value to 11 bits (by at most 0.05 %), streamed ones too; all that is computed is float32. By default float32."""

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            require(0 < getattr(self, name) < 1, f"data.{name}", getattr(self, name), "a share in (0, 1)")
        require(0 < self.labelled <= 1, "data.labelled", self.labelled, "a share in (0, 1]")
        total = self.val_fraction + self.test_fraction
        require(total < 1, "data.val_fraction + data.test_fraction", total, "less than 1, or nothing is left to train")
        needs_held_out = self.split in ("leave-subject-out", "leave-block-out", "leave-session-out")
        may_hold_out = self.split in ("zero-shot", "concept-disjoint")
        if needs_held_out != (self.held_out is not None) and not may_hold_out:
            what = "needs data.held_out (a subject, block or session)" if needs_held_out else "takes no data.held_out"
            raise InputError(f"data.split {self.split!r} {what}; got {self.held_out!r}")
        if self.split == "time-purged" and self.purge_s is None:
            raise InputError("data.split 'time-purged' needs data.purge_s, seconds between training and other windows")
        require(self.purge_s is None or self.purge_s >= 0, "data.purge_s", self.purge_s, "at least 0 s")
        require(self.repetitions >= 0, "data.repetitions", self.repetitions, "at least 0 (0: all)")
        require((self.val_repetitions or 0) >= 0, "data.val_repetitions", self.val_repetitions, "at least 0 (0: all)")
        if self.storage and self.normalise == "none":
            raise InputError(f"data.storage {self.storage!r} is for normalised segments; data.normalise is 'none'")
        for name in ("window_s", "band_hz"):
            low_high = getattr(self, name) or (0.0, 1.0)
            in_order = len(low_high) == 2 and low_high[0] < low_high[1]
            require(in_order, f"data.{name}", getattr(self, name), "two numbers in order")
        require((self.band_hz or (0.0,))[0] >= 0, "data.band_hz", self.band_hz, "frequencies from 0 Hz on")


@dataclass(frozen=True, kw_only=True)
class EegConfig:
    """EEG encoder: [B, C, T] -> [B, D]."""

    encoder: EegEncoderName = "palazzo-gru"
    """Architecture."""
    embed_dim: int = 128
    """Size D of the joint embedding; equal to `image.embed_dim`."""
    channels: Literal["shared", "mixed"] | None = None
    """palazzo: one set of temporal filters for every channel and a learned merge, or C-input convolutions."""
    hidden: int | None = None
    """palazzo, perceivelab: size of the recurrent state (256; 128). simple-conv: width of its convolutions (320)."""
    filters: int | None = None
    """tsconv, nice-sa, nice-ga, atm-s: number of temporal and spatial filters (40)."""
    dropout: float | None = None
    """nice, atm-s, tsconv: dropout after the convolutions and in the projection, in [0, 1) (0.5); eeg-project: in the
    projection (0.3); eeg-channelnet: of whole maps (0.2); braindecode: as published (0.25 for EEGNet, else 0.5), and
    for the Conformer in its attention too, though not before its last layer."""
    channel_dropout: float | None = None
    """nice-sa, nice-ga, atm-s: dropout in the layer over channels, in [0, 1) (0.3; 0.3; 0.25)."""
    dropout_radius: float | None = None
    """simple-conv: in training, channels this near to a random point are left out, in extents of the montage (0.2)."""
    blocks: int | None = None
    """eeg-channelnet: residual blocks (4); fewer fit smaller montages: 3 from 62 channels, 1 from 14."""
    subjects: Literal["token", "layer"] | None = None
    """What is learned for each subject apart: atm-s's token, or (any encoder) a linear map of the channels in front;
    by default nothing."""
    variant: Literal["published", "released"] | None = None
    """nice-sa, nice-ga, atm-s, eeg-channelnet: what the paper describes, or what its released code computes."""

    def __post_init__(self) -> None:
        require(self.embed_dim >= 1, "eeg.embed_dim", self.embed_dim, "at least 1")
        require_applicable(self, "eeg", self.encoder, EEG_DEFAULTS)
        for name in ("hidden", "filters"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"eeg.{name}", value, "at least 1")
        for name in ("dropout", "channel_dropout"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"eeg.{name}", value, "a share in [0, 1)")
        if self.subjects == "token" and self.encoder != "atm-s":
            raise InputError(
                f"eeg.subjects is 'token', but {self.encoder!r} has no tokens (only atm-s has); "
                "use 'layer', remove it or choose atm-s"
            )
        for name in ("dropout_radius", "blocks"):
            require((getattr(self, name) or 0) >= 0, f"eeg.{name}", getattr(self, name), "at least 0")

    def resolved(self) -> EegConfig:
        """Return this config with every setting of its encoder filled in."""
        return filled(self, EEG_DEFAULTS[self.encoder])


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image encoder, [B, 3, H, W] -> [B, D]: trained with the EEG encoder, or frozen with a trained map to D."""

    encoder: ImageEncoderName = "small"
    """Architecture: ours for laptops (`small`), torchvision's, one of `timm` or `open_clip` (extras); or no network:
    features from a `file`, or a random vector per class (`random-codebook`, a control)."""
    embed_dim: int = 128
    """Size D of the joint embedding; equal to `eeg.embed_dim`."""
    model: str | None = None
    """timm, open_clip: name of the model there, such as ViT-H-14."""
    weights: str = "none"
    """`none` (random), `imagenet` (torchvision's download), the path of a state-dict file; timm: `hub` or a path;
    open_clip: a tag such as laion2b_s32b_b79k, or a path."""
    size_px: int | None = None
    """Side of the square input; by default the size the encoder was published with."""
    frozen: bool | None = None
    """Keep the network as it is, compute its features once and train a map from them to D. By default only encoders
    that cannot be trained here (timm, open_clip, file, random-codebook) are."""
    layer: str | None = None
    """frozen: where features are taken: `last` (what enters the classifier), `logits`, the name of a module, or a
    depth in (0, 1] such as 0.67 of the network's blocks (last)."""
    pooling: Literal["mean", "max", "cls", "flatten"] | None = None
    """frozen: how maps or tokens of a layer become one vector (mean)."""
    blur_px: float | None = None
    """frozen: sd of a Gaussian blur of the input, in pixels of it, >= 0 (0: none)."""
    foveal: float | None = None
    """frozen, with blur: weight of the sharp picture at the centre, falling as exp(-3 r / r_max), in [0, 1] (0; UBP
    has 0.5)."""
    projector: Literal["none", "linear", "residual"] | None = None
    """frozen: map from features to D: none (D is their size, as in NICE's code), linear, or NICE's residual one
    (linear)."""
    features: str | None = None
    """file: path of the features: a .npy with one row per picture, or a .pt/.safetensors dict."""
    text: str | None = None
    """Path of text features of D dimensions per picture or class, for `loss.text_weight` and text galleries."""

    def __post_init__(self) -> None:
        require(self.embed_dim >= 1, "image.embed_dim", self.embed_dim, "at least 1")
        require(bool(self.weights), "image.weights", self.weights, "none, imagenet or a path")
        require(self.size_px is None or self.size_px >= 16, "image.size_px", self.size_px, "at least 16")
        if self.weights == "imagenet" and self.encoder in ("small", *ALWAYS_FROZEN):
            raise InputError(
                f"image.weights is 'imagenet', but the encoder {self.encoder!r} has no such weights; use 'none'"
            )
        require((self.blur_px or 0) >= 0, "image.blur_px", self.blur_px, "at least 0")
        require(0 <= (self.foveal or 0) <= 1, "image.foveal", self.foveal, "a weight in [0, 1]")
        self._check_applicable()

    def _check_applicable(self) -> None:
        """Refuse what is set but would change nothing, and what is missing."""
        if self.frozen is False and self.encoder in ALWAYS_FROZEN:
            raise InputError(f"image.frozen is False, but {self.encoder!r} cannot be trained here; leave it out")
        for name in (*_FROZEN_DEFAULTS, "projector"):
            value = getattr(self, name)
            if value is not None and not self.is_frozen:
                raise InputError(f"image.{name} is {value!r}, but only frozen features have it; set image.frozen")
            if value is not None and name != "projector" and self.encoder in _NO_LAYERS:
                raise InputError(f"image.{name} is {value!r}, but {self.encoder!r} runs no network; leave it out")
        if self.foveal and not self.blur_px:
            raise InputError(f"image.foveal is {self.foveal!r}, but there is no blur; set image.blur_px")
        if self.encoder in _NO_LAYERS and (self.size_px is not None or self.weights != "none"):
            raise InputError(f"{self.encoder!r} runs no network; leave image.size_px and image.weights out")
        for name, owners in (("model", ("timm", "open_clip")), ("features", ("file",))):
            value = getattr(self, name)
            if (value is not None) != (self.encoder in owners):
                what = "needs" if value is None else "has no"
                raise InputError(f"the image encoder {self.encoder!r} {what} image.{name}; got {value!r}")

    @property
    def is_frozen(self) -> bool:
        """Whether features are made once and only a map from them is trained."""
        return self.encoder in ALWAYS_FROZEN if self.frozen is None else self.frozen

    @property
    def input_px(self) -> int:
        """Side of the square input."""
        return self.size_px or IMAGE_SIZES_PX.get(self.encoder, 224)

    def resolved(self) -> ImageConfig:
        """Return this config with every setting that applies filled in."""
        known: dict[str, Any] = {"frozen": self.is_frozen}
        if self.encoder not in (*_NO_LAYERS, "timm", "open_clip"):  # those two know their own size
            known["size_px"] = self.input_px
        if self.is_frozen:
            known |= {"projector": "linear"} | ({} if self.encoder in _NO_LAYERS else _FROZEN_DEFAULTS)
        return filled(self, known)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Objective on the two embeddings of a batch, or on one of them."""

    name: LossName = "triplet"
    """`triplet` (Palazzo Eq. 2), symmetric `info_nce` (NICE), or `siglip`; or cross-entropy of a linear classifier on
    one encoder alone: `eeg-classes`, `image-classes`."""
    margin: float | None = None
    """triplet: margin, >= 0 (0)."""
    negatives: Literal["random", "semi-hard", "all"] | None = None
    """triplet: one random other image of the batch, the hardest of those less compatible than the own image, or the
    mean over all others (random)."""
    temperature: float | None = None
    """info_nce, siglip: temperature, or its first value when learned, > 0 (0.07; 0.1)."""
    learn_temperature: bool | None = None
    """info_nce, siglip: whether the temperature is learned (yes)."""
    scale: Literal["exp", "raw", "softplus"] | None = None
    """info_nce, siglip: how the factor s on similarities follows from p, which begins at ln(1 / temperature): e^p as
    in CLIP, p itself as ATM's code has it, or ln(1 + e^p) as UBP's (exp)."""
    direction: Literal["both", "eeg-to-image"] | None = None
    """info_nce: whether images also pick their EEG (both)."""
    normalise_eeg: bool | None = None
    """Whether EEG embeddings have unit length in the loss (triplet no, others yes)."""
    normalise_image: bool | None = None
    """Whether image embeddings have unit length in the loss (triplet no, others yes)."""
    duplicates: Literal["left-out", "negatives"] | None = None
    """Other rows of a batch that show the same image: left out, or taken for negatives as ATM's code does
    (left-out)."""
    text_weight: float | None = None
    """Share of the same loss between EEG and text features (`image.text`), in [0, 1) (0; ATM has 0.01)."""
    mse_weight: float | None = None
    """Weight of the mean squared difference between the embeddings of a pair, >= 0 (0)."""
    centre_weight: float | None = None
    """Weight of the mean squared difference between an EEG embedding and the mean image embedding of its class in the
    batch, >= 0 (0)."""

    def __post_init__(self) -> None:
        require_applicable(self, "loss", self.name, LOSS_DEFAULTS)
        require(self.margin is None or self.margin >= 0, "loss.margin", self.margin, "at least 0")
        require(self.temperature is None or self.temperature > 0, "loss.temperature", self.temperature, "above 0")
        if self.negatives == "semi-hard" and not self.margin:
            raise InputError(
                "loss.negatives 'semi-hard' takes images that are told apart already, which count only within a "
                "margin: it needs a margin above 0, set loss.margin"
            )
        require(0 <= (self.text_weight or 0) < 1, "loss.text_weight", self.text_weight, "a share in [0, 1)")
        for name in ("mse_weight", "centre_weight"):
            require((getattr(self, name) or 0) >= 0, f"loss.{name}", getattr(self, name), "at least 0")

    @property
    def arm(self) -> Arm:
        """Which encoders are trained."""
        return {"eeg-classes": "eeg", "image-classes": "image"}.get(self.name, "joint")  # type: ignore[return-value]

    def resolved(self) -> LossConfig:
        """Return this config with every setting of its loss filled in."""
        return filled(self, LOSS_DEFAULTS[self.name])


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and its schedule."""

    name: Literal["adam", "adamw"] = "adam"
    """Adam as in the paper, or with decoupled weight decay."""
    lr: float = 1e-3
    """Peak learning rate, > 0."""
    beta1: float = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the second moment, in [0, 1)."""
    weight_decay: float = 0.0
    """Weight decay, >= 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or a half cosine to zero at the last step."""
    warmup: float = 0.0
    """Share of all steps over which the learning rate rises linearly, in [0, 1)."""
    clip_norm: float | None = None
    """Largest gradient norm, > 0; none means no clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "above 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        for name in ("beta1", "beta2", "warmup"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "in [0, 1)")
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    batch_size: int = 16
    """Segments per optimiser step over all workers together, >= 2."""
    max_passes: int = 100
    """Passes over the training set, >= 1."""
    metric: MetricName | None = None
    """Validation metric that picks the best checkpoint, stops early and ranks trials: by default val/top1, and
    val/accuracy where one encoder is trained alone."""
    patience: int | None = None
    """Stop after so many passes without a better metric; none means never."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoders; `auto` is bf16 on GPUs that have it, else fp32."""
    channels_last: bool = True
    """Memory layout of images and convolutions (faster on most devices)."""
    max_bad_steps: int = 10
    """Give up after so many steps in a row with a non-finite loss or gradient (each is skipped), >= 1."""
    save_minutes: float | None = field(default=10.0, metadata=SPEED_ONLY)
    """In passes that last longer, store the position this often, so that a kill costs no more than that; > 0. None
    means only at the end of each pass."""

    def __post_init__(self) -> None:
        require(self.save_minutes is None or self.save_minutes > 0, "train.save_minutes", self.save_minutes, "above 0")
        require(self.batch_size >= 2, "train.batch_size", self.batch_size, "at least 2 (losses need a negative)")
        for name in ("max_passes", "max_bad_steps"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        require(self.patience is None or self.patience >= 1, "train.patience", self.patience, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that, with the data and the code, determines a run."""

    data: DataConfig = field(default_factory=DataConfig)
    eeg: EegConfig = field(default_factory=EegConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Seed of weights, batch order, crops and dropout, >= 0."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        arm = self.loss.arm
        if arm == "joint" and self.eeg.embed_dim != self.image.embed_dim:
            raise InputError(
                f"eeg.embed_dim is {self.eeg.embed_dim} and image.embed_dim is {self.image.embed_dim}; "
                "both towers embed into one space, so set them to the same number"
            )
        if arm == "eeg" and self.image != ImageConfig():
            raise InputError("loss.name 'eeg-classes' trains no image encoder; leave out every image.* setting")
        if arm == "image" and self.eeg != EegConfig():
            raise InputError("loss.name 'image-classes' trains no EEG encoder; leave out every eeg.* setting")
        if arm != "joint" and self.train.metric not in (None, "val/accuracy", "val/loss"):
            raise InputError(
                f"train.metric is {self.train.metric!r}, but loss.name {self.loss.name!r} retrieves nothing; "
                "use 'val/accuracy' or 'val/loss'"
            )
        if arm == "joint" and self.train.metric == "val/accuracy":
            raise InputError("train.metric 'val/accuracy' is a classifier's; use 'val/class_top1' or 'val/top1'")
        if self.image.is_frozen and self.data.crops == "ten":
            raise InputError("data.crops is 'ten', but frozen features are those of the central crop; leave it out")
        if self.loss.text_weight and self.image.text is None:
            raise InputError(f"loss.text_weight is {self.loss.text_weight!r}, but there is no text; set image.text")

    @property
    def metric(self) -> MetricName:
        """Validation metric that picks the best checkpoint."""
        return self.train.metric or ("val/top1" if self.loss.arm == "joint" else "val/accuracy")

    @property
    def mode(self) -> Literal["min", "max"]:
        """Direction in which `metric` improves."""
        return "min" if self.metric == "val/loss" else "max"

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values (JSON, YAML)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from nested values; missing fields take their defaults, unknown ones raise."""
        return cls().with_overrides(flatten(values))

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Return a copy with dotted fields replaced, for example `{"optim.lr": 3e-4}`.

        Raises:
            InputError: a path is unknown (the nearest is named) or a value has the wrong type or range.
        """
        return replaced(self, overrides)

    def resolved(self) -> Self:
        """Return a copy in which every field that applies has its value."""
        arm = self.loss.arm
        return dataclasses.replace(
            self,
            data=filled(self.data, {"crops": "centre" if self.image.is_frozen or arm == "eeg" else "ten"}),
            eeg=self.eeg if arm == "image" else self.eeg.resolved(),
            image=self.image if arm == "eeg" else self.image.resolved(),
            loss=self.loss.resolved(),
            train=dataclasses.replace(self.train, metric=self.metric),
        )

    def flat(self) -> dict[str, Any]:
        """Return resolved dotted fields, without those that do not apply: what is logged and compared."""
        absent = {"joint": "-", "eeg": "image.", "image": "eeg."}[self.loss.arm]
        plain = flatten(self.resolved().to_dict())
        return {path: value for path, value in plain.items() if value is not None and not path.startswith(absent)}

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits of a hash over every field that changes results."""
        kept = {path: value for path, value in self.flat().items() if changes_results(self, path)}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How a search is run: its size, its stopping rule and what each trial may use."""

    trials: int = 16
    """Configurations to try, >= 1."""
    search_seed: int = 0
    """Seed of the searcher. With several trials at a time their order of completion matters too."""
    min_passes: int | None = None
    """Passes every trial gets before it can be stopped, >= 1; by default a third of them (`first_stop`)."""
    keep_one_in: int = 3
    """At each rung the best 1/keep_one_in of the trials go on, >= 2."""
    max_concurrent: int | None = None
    """Trials at a time; by default as many as the cluster's CPUs and GPUs hold. Another value when a sweep goes on
    counts for trials that have not begun."""
    workers_per_trial: int = 1
    """Ray Train workers of each trial."""
    cpus_per_trial: float = 1.0
    """CPUs of each worker."""
    gpus_per_trial: float | None = None
    """GPUs of each worker, fractions allowed; by default 1 where the cluster has GPUs, else 0."""
    together: int = 1
    """Trials that meet in one process with the CPUs and GPUs of a single one, and take their steps as one program
    where their shapes agree; see `stacked.family`. For small networks on frozen image features, on a GPU."""
    max_failures: int = 2
    """Times a failed trial is started again from its checkpoint; the same command after an interruption gives it as
    many again."""
    memory_gb_per_trial: float | None = None
    """Host memory to keep free for each trial, in GB; trials that would not fit beside each other wait. By default
    none is reserved."""
    trial_hours: float | None = None
    """A trial ends after the pass that brings it over this many hours of training, with its best pass so far."""
    stall_minutes: float | None = 120.0
    """A trial from which nothing is heard for so long is ended and started again from its checkpoint; longer than any
    pass takes. None waits for ever."""
    allow_drift: bool = False
    """Go on with a sweep although the code or a library has another version than it was begun with; its table says
    so."""

    def __post_init__(self) -> None:
        floors = {
            "trials": 1,
            "keep_one_in": 2,
            "workers_per_trial": 1,
            "together": 1,
            "max_failures": 0,
        }
        for name, floor in floors.items():
            require(getattr(self, name) >= floor, name, getattr(self, name), f"at least {floor}")
        for name in ("min_passes", "max_concurrent"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        for name in ("memory_gb_per_trial", "trial_hours", "stall_minutes"):
            require((1 if (value := getattr(self, name)) is None else value) > 0, name, value, "above 0")
        if self.together > 1 and self.workers_per_trial > 1:
            raise InputError(
                f"together {self.together} is for trials that share a GPU, workers_per_trial {self.workers_per_trial} "
                "for those that need several; leave one of them out"
            )
        if self.memory_gb_per_trial is not None:
            for name in ("workers_per_trial", "together"):
                if (count := getattr(self, name)) > 1:
                    raise InputError(
                        "memory_gb_per_trial is reserved for trials with one process each; with "
                        f"{name} {count} leave it out"
                    )

    def first_stop(self, max_passes: int) -> int:
        """Return the pass after which trials of so many are held against each other for the first time.

        After a third, searches return the best of a grid more often than after a ninth, by as much training
        (`benchmarks/search_cpu_202611.md`).
        """
        return min(self.min_passes or -(-max_passes // 3), max_passes)


PLACES: dict[Place, tuple[int, float, float]] = {
    "cpu": (1, 1.0, 0.0),
    "quarter-gpu": (1, 1.0, 0.25),
    "half-gpu": (1, 2.0, 0.5),
    "gpu": (1, 4.0, 1.0),
    "two-gpus": (2, 4.0, 1.0),
    "four-gpus": (4, 4.0, 1.0),
}
"""What a trial may hold, by name: workers, and of each worker its CPUs and GPUs. Single flags go over it."""
