"""What a run is: frozen, keyword-only dataclasses up to `RunConfig`, checked when made.

A field that only some encoders or losses have is `None` by default, which means "the published value"
(`resolved()` fills it in); setting it where it does not apply is an error, so no setting is ever ignored.
Sizes known only from data (channels, samples, rate, classes) are not here: they come from the manifest.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from eegvision.vocab import InputError, SplitRule

EegEncoderName = Literal[
    "palazzo-lstm", "palazzo-gru", "tsconv", "nice-sa", "nice-ga", "nice-shallow", "nice-deep", "nice-eegnet", "atm-s",
    "eeg-project", "eeg-channelnet", "perceivelab-lstm", "simple-conv",
    "braindecode-eegnet", "braindecode-shallow", "braindecode-deep4", "braindecode-conformer",
]  # fmt: skip
ImageEncoderName = Literal["small", "alexnet", "resnet18", "resnet101", "densenet161", "inception_v3"]
LossName = Literal["triplet", "info_nce", "siglip"]
MetricName = Literal["val/loss", "val/top1", "val/top5", "val/class_top1"]

# Fields that change how fast a run is but not what it computes carry this mark and stay out of the fingerprint.
_SPEED_ONLY = {"fingerprint": False}

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
LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
    "triplet": {"margin": 0.0, "negatives": "random", "normalise_eeg": False, "normalise_image": False},
    "info_nce": {"temperature": 0.07, "learn_temperature": True, "normalise_eeg": True, "normalise_image": True},
    "siglip": {"temperature": 0.1, "learn_temperature": True, "normalise_eeg": True, "normalise_image": True},
}
IMAGE_SIZES_PX: dict[str, int] = {
    "small": 64, "alexnet": 224, "resnet18": 224, "resnet101": 224, "densenet161": 224, "inception_v3": 299,
}  # fmt: skip


def _require(condition: bool, path: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{path} is {value!r}; expected {expected}")


def _require_applicable(config: Any, prefix: str, choice: str, defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a choice-specific field that is set although the choice made does not have it."""
    for name in sorted({name for own in defaults.values() for name in own}):
        if getattr(config, name) is not None and name not in defaults[choice]:
            owners = ", ".join(sorted(other for other, own in defaults.items() if name in own))
            raise InputError(
                f"{prefix}.{name} is set to {getattr(config, name)!r}, but {choice!r} has no such setting "
                f"(only {owners}); remove it or choose one of those"
            )


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
    """Subject of `leave-subject-out` (and, if given, of `zero-shot`), or number for `leave-block-out` and
    `leave-session-out`."""
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
    crops: Literal["ten", "centre"] = "ten"
    """Training views: one of ten crops (corners, centre, mirrors) of a 1.1x image drawn anew each pass, or the
    central crop alone. Validation always sees the central crop."""
    residency: Literal["auto", "device", "host", "stream"] = field(default="auto", metadata=_SPEED_ONLY)
    """Where segments live after the first pass; `auto` takes the fastest place they fit."""

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            _require(0 < getattr(self, name) < 1, f"data.{name}", getattr(self, name), "a share in (0, 1)")
        total = self.val_fraction + self.test_fraction
        _require(total < 1, "data.val_fraction + data.test_fraction", total, "less than 1, or nothing is left to train")
        needs_held_out = self.split in ("leave-subject-out", "leave-block-out", "leave-session-out")
        if needs_held_out != (self.held_out is not None) and self.split != "zero-shot":
            what = "needs data.held_out (a subject, block or session)" if needs_held_out else "takes no data.held_out"
            raise InputError(f"data.split {self.split!r} {what}; got {self.held_out!r}")
        if self.split == "time-purged" and self.purge_s is None:
            raise InputError("data.split 'time-purged' needs data.purge_s, seconds between training and other windows")
        _require(self.purge_s is None or self.purge_s >= 0, "data.purge_s", self.purge_s, "at least 0 s")
        _require(self.repetitions >= 0, "data.repetitions", self.repetitions, "at least 0 (0: all)")
        _require((self.val_repetitions or 0) >= 0, "data.val_repetitions", self.val_repetitions, "at least 0 (0: all)")
        window_s = self.window_s or (0.0, 1.0)
        _require(len(window_s) == 2 and window_s[0] < window_s[1], "data.window_s", self.window_s, "two times in order")


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
        _require(self.embed_dim >= 1, "eeg.embed_dim", self.embed_dim, "at least 1")
        _require_applicable(self, "eeg", self.encoder, EEG_DEFAULTS)
        for name in ("hidden", "filters"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"eeg.{name}", value, "at least 1")
        for name in ("dropout", "channel_dropout"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 1, f"eeg.{name}", value, "a share in [0, 1)")
        if self.subjects == "token" and self.encoder != "atm-s":
            raise InputError(
                f"eeg.subjects is 'token', but {self.encoder!r} has no tokens (only atm-s has); "
                "use 'layer', remove it or choose atm-s"
            )
        for name in ("dropout_radius", "blocks"):
            _require((getattr(self, name) or 0) >= 0, f"eeg.{name}", getattr(self, name), "at least 0")

    def resolved(self) -> EegConfig:
        """Return this config with every setting of its encoder filled in."""
        return _filled(self, EEG_DEFAULTS[self.encoder])


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image encoder: [B, 3, H, W] -> [B, D]."""

    encoder: ImageEncoderName = "small"
    """Architecture: ours for laptops (`small`) or torchvision's."""
    embed_dim: int = 128
    """Size D of the joint embedding; equal to `eeg.embed_dim`."""
    weights: str = "none"
    """`none` (random), `imagenet` (torchvision's download) or the path of a state-dict file."""
    size_px: int | None = None
    """Side of the square input; by default the size the encoder was published with."""

    def __post_init__(self) -> None:
        _require(self.embed_dim >= 1, "image.embed_dim", self.embed_dim, "at least 1")
        _require(bool(self.weights), "image.weights", self.weights, "none, imagenet or a path")
        _require(self.size_px is None or self.size_px >= 16, "image.size_px", self.size_px, "at least 16")
        if self.weights == "imagenet" and self.encoder == "small":
            raise InputError("image.weights is 'imagenet', but the encoder 'small' has no such weights; use 'none'")

    @property
    def input_px(self) -> int:
        """Side of the square input."""
        return self.size_px or IMAGE_SIZES_PX[self.encoder]

    def resolved(self) -> ImageConfig:
        """Return this config with the input size filled in."""
        return _filled(self, {"size_px": self.input_px})


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Objective on the two embeddings of a batch."""

    name: LossName = "triplet"
    """`triplet` (Palazzo Eq. 2), symmetric `info_nce` (NICE), or `siglip`."""
    margin: float | None = None
    """triplet: margin, >= 0 (0)."""
    negatives: Literal["random", "all"] | None = None
    """triplet: one random other image of the batch, or the mean over all others (random)."""
    temperature: float | None = None
    """info_nce, siglip: temperature, or its first value when learned, > 0 (0.07; 0.1)."""
    learn_temperature: bool | None = None
    """info_nce, siglip: whether the temperature is learned (yes)."""
    normalise_eeg: bool | None = None
    """Whether EEG embeddings have unit length (triplet no, others yes)."""
    normalise_image: bool | None = None
    """Whether image embeddings have unit length (triplet no, others yes)."""

    def __post_init__(self) -> None:
        _require_applicable(self, "loss", self.name, LOSS_DEFAULTS)
        _require(self.margin is None or self.margin >= 0, "loss.margin", self.margin, "at least 0")
        _require(self.temperature is None or self.temperature > 0, "loss.temperature", self.temperature, "above 0")

    def resolved(self) -> LossConfig:
        """Return this config with every setting of its loss filled in."""
        return _filled(self, LOSS_DEFAULTS[self.name])


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
        _require(self.lr > 0, "optim.lr", self.lr, "above 0")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        for name in ("beta1", "beta2", "warmup"):
            _require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "in [0, 1)")
        _require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    batch_size: int = 16
    """Segments per optimiser step over all workers together, >= 2."""
    max_passes: int = 100
    """Passes over the training set, >= 1."""
    metric: MetricName = "val/top1"
    """Validation metric that picks the best checkpoint, stops early and ranks trials."""
    patience: int | None = None
    """Stop after so many passes without a better metric; none means never."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoders; `auto` is bf16 on GPUs that have it, else fp32."""
    channels_last: bool = True
    """Memory layout of images and convolutions (faster on most devices)."""
    max_bad_steps: int = 10
    """Give up after so many steps in a row with a non-finite loss or gradient (each is skipped), >= 1."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 2, "train.batch_size", self.batch_size, "at least 2 (losses need a negative)")
        for name in ("max_passes", "max_bad_steps"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        _require(self.patience is None or self.patience >= 1, "train.patience", self.patience, "at least 1")

    @property
    def mode(self) -> Literal["min", "max"]:
        """Direction in which `metric` improves."""
        return "min" if self.metric == "val/loss" else "max"


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
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        if self.eeg.embed_dim != self.image.embed_dim:
            raise InputError(
                f"eeg.embed_dim is {self.eeg.embed_dim} and image.embed_dim is {self.image.embed_dim}; "
                "both towers embed into one space, so set them to the same number"
            )

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
        nested = {name: {} for name, value in vars(self).items() if dataclasses.is_dataclass(value)}
        top: dict[str, Any] = {}
        paths = _field_types(type(self))
        for path, value in overrides.items():
            if path not in paths:
                near = difflib.get_close_matches(path, paths, n=1, cutoff=0)
                raise InputError(f"unknown setting {path!r}; did you mean {near[0]!r}?")
            value = _checked(path, value, paths[path])
            group, _, name = path.rpartition(".")
            (nested[group] if group else top)[name] = value
        groups = {name: dataclasses.replace(getattr(self, name), **values) for name, values in nested.items()}
        return dataclasses.replace(self, **groups, **top)

    def resolved(self) -> Self:
        """Return a copy in which every field that applies has its value."""
        return dataclasses.replace(
            self, eeg=self.eeg.resolved(), image=self.image.resolved(), loss=self.loss.resolved()
        )

    def flat(self) -> dict[str, Any]:
        """Return resolved dotted fields, without those that do not apply: what is logged and compared."""
        return {path: value for path, value in flatten(self.resolved().to_dict()).items() if value is not None}

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits of a hash over every field that changes results."""
        kept = {path: value for path, value in self.flat().items() if _changes_results(type(self), path)}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How a search is run: its size, its stopping rule and what each trial may use."""

    trials: int = 16
    """Configurations to try, >= 1."""
    search_seed: int = 0
    """Seed of the searcher. With several trials at a time their order of completion matters too."""
    min_passes: int = 3
    """Passes every trial gets before it can be stopped, >= 1."""
    keep_one_in: int = 3
    """At each rung the best 1/keep_one_in of the trials go on, >= 2."""
    max_concurrent: int | None = None
    """Trials at a time; by default as many as the cluster's CPUs and GPUs hold."""
    workers_per_trial: int = 1
    """Ray Train workers of each trial."""
    cpus_per_trial: float = 1.0
    """CPUs of each worker."""
    gpus_per_trial: float | None = None
    """GPUs of each worker, fractions allowed; by default 1 where the cluster has GPUs, else 0."""
    max_failures: int = 2
    """Times a failed trial is started again from its checkpoint."""

    def __post_init__(self) -> None:
        floors = {"trials": 1, "min_passes": 1, "keep_one_in": 2, "workers_per_trial": 1, "max_failures": 0}
        for name, floor in floors.items():
            _require(getattr(self, name) >= floor, name, getattr(self, name), f"at least {floor}")
        _require((self.max_concurrent or 1) >= 1, "max_concurrent", self.max_concurrent, "at least 1")


def _filled(config: Any, defaults: Mapping[str, Any]) -> Any:
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names: `{"optim": {"lr": 1}}` becomes `{"optim.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _field_types(cls: type) -> dict[str, Any]:
    """Map every dotted field of a config class to its annotation."""
    paths: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            paths |= {f"{name}.{inner}": inner_kind for inner, inner_kind in get_type_hints(kind).items()}
        else:
            paths[name] = kind
    return paths


def _changes_results(cls: type, path: str) -> bool:
    group, _, name = path.rpartition(".")
    owner = get_type_hints(cls)[group] if group else cls
    return next(f for f in dataclasses.fields(owner) if f.name == name).metadata.get("fingerprint", True)


def _checked(path: str, value: Any, kind: Any) -> Any:
    """Return `value` as an instance of the annotation `kind`, or raise naming the path and what was expected."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
        origin = get_origin(kind)
    if origin is Literal:
        _require(value in get_args(kind), path, value, "one of " + ", ".join(map(repr, get_args(kind))))
        return value
    if origin is tuple:
        inner = get_args(kind)[0]
        allowed = (int, float) if inner is float else inner
        is_list = isinstance(value, list | tuple) and all(isinstance(item, allowed) for item in value)
        _require(is_list, path, value, "a list of numbers" if inner is float else "a list of names")
        return tuple(map(inner, value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(is_right, path, value, f"a value of type {kind.__name__}")
    _require(not isinstance(value, float) or math.isfinite(value), path, value, "a finite number")
    return value
