"""Image networks from timm and open_clip, optional packages that are imported only when one of them is asked for.

They are never trained here: `frozen.build_backbone` takes features from them.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from eegvision.config import ImageConfig
from eegvision.encoders.image import Original
from eegvision.vocab import InputError

INSTALL = {"timm": "pip install 'timm>=1.0.26,<2'", "open_clip": "pip install 'open_clip_torch>=3.3,<4'"}

# Transformers keep their blocks under these names, residual networks theirs in `layer1` to `layer4`.
_BLOCKS = r"(?:.*\.)?(?:blocks|resblocks|layers|layer\d)(?:\.\d+)+"


def build_timm(config: ImageConfig) -> Original:
    """Return timm's network `config.model` for features.

    Weights are `none` (random, the same ones every time), `hub` (timm's download) or the path of a file, read as timm
    reads its own. Size, statistics and the way pictures are resized are those of timm's evaluation transform; another
    `config.size_px` goes to networks that are built for one size.

    Raises:
        InputError: timm is missing, does not know the model, or the weights cannot be had or do not fit.
    """
    timm = _package("timm")
    assert config.model is not None
    if not timm.is_model(config.model):
        raise _unknown(config, timm.list_models())
    options: dict[str, Any] = {"pretrained": config.weights != "none"}
    if config.weights not in ("none", "hub"):
        options["pretrained_cfg_overlay"] = {"file": _existing(config, "'none', 'hub'")}
    published = timm.get_pretrained_cfg(config.model)
    is_sized = bool(published is not None and published.fixed_input_size)
    if config.size_px is not None and is_sized:
        options["img_size"] = config.size_px
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            net = timm.create_model(config.model, **options)
        except Exception as error:  # of the network, of the file, or of sizes that do not fit
            raise _unbuilt(config, error) from error
    net.eval().requires_grad_(False)
    view = timm.data.resolve_data_config({}, model=net)
    size_px = config.size_px or view["input_size"][-1]
    as_seen = view | {"input_size": (3, size_px, size_px), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    classifier = net.get_classifier()
    return Original(
        net=net,
        head=next((name for name, module in net.named_modules() if module is classifier), None),
        has_classes=isinstance(classifier, nn.Linear),
        blocks=_BLOCKS,
        n_class_tokens=getattr(net, "num_prefix_tokens", 0),
        size_px=size_px,
        is_sized=is_sized,
        mean=tuple(view["mean"]),
        std=tuple(view["std"]),
        transform=timm.data.create_transform(**as_seen, is_training=False),
    )


def build_open_clip(config: ImageConfig) -> Original:
    """Return the image tower of open_clip's `config.model`, whose feature vector is the joint embedding of unit length.

    Weights are `none` (random, the same ones every time), a tag of open_clip such as laion2b_s32b_b79k (downloaded),
    or the path of a checkpoint. A tag brings the activation it was trained with. Pictures are resized as for
    evaluation, never with the random crop of training that ATM's code takes features with.

    Raises:
        InputError: open_clip is missing, does not know the model, or the weights cannot be had or do not fit.
    """
    open_clip = _package("open_clip")
    name, tag = config.model, config.weights
    assert name is not None
    if name not in open_clip.list_models():
        raise _unknown(config, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    options: dict[str, Any] = {"force_image_size": config.size_px, "pretrained_text": False}
    if tag in tags:
        is_quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        options |= {"pretrained": tag, "force_quick_gelu": is_quick}
    elif tag != "none":
        options["pretrained"] = _existing(config, f"'none', a tag ({', '.join(tags) or 'none is known'})")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        torch.manual_seed(0)
        try:
            net = open_clip.create_model(name, **options).visual
        except Exception as error:  # of the network, of the file, or of sizes that do not fit
            raise _unbuilt(config, error) from error
    net.eval().requires_grad_(False)
    view = open_clip.transform.PreprocessCfg(**net.preprocess_cfg)
    size_px = view.size if isinstance(view.size, int) else view.size[0]
    as_seen = open_clip.transform.PreprocessCfg(
        **(net.preprocess_cfg | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    )
    trunk = getattr(net, "trunk", net)  # of timm, in some models
    return Original(
        net=net,
        head=None,
        has_classes=False,
        blocks=_BLOCKS,
        n_class_tokens=getattr(trunk, "num_prefix_tokens", int(hasattr(net, "class_embedding"))),
        size_px=size_px,
        is_sized=True,
        mean=tuple(view.mean),
        std=tuple(view.std),
        transform=open_clip.transform.image_transform_v2(as_seen, is_train=False),
        has_unit_length=True,
    )


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    # Its own dependencies raise RuntimeError or OSError where they do not fit torch.
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"image.encoder {name!r} comes from a package that cannot be imported here ({error}); install it with "
            f"{INSTALL[name]}, or choose a network of torchvision, for example 'vit_b_16'"
        ) from error


def _unknown(config: ImageConfig, known: Sequence[str]) -> InputError:
    near = ", ".join(difflib.get_close_matches(str(config.model), known, n=3, cutoff=0.4))
    return InputError(
        f"image.model {config.model!r} is unknown to {config.encoder}; its list_models() says which there are"
        + (f", for example {near}" if near else "")
    )


def _existing(config: ImageConfig, others: str) -> str:
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise InputError(
            f"image.weights {config.weights!r} is not a file (looked in {Path.cwd()}) and no weights that "
            f"{config.encoder} has for {config.model!r}; give {others}, or the absolute path of a file"
        )
    return str(path)


def _unbuilt(config: ImageConfig, error: Exception) -> InputError:
    size = "" if config.size_px is None else f" for images of {config.size_px} px"
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return InputError(
        f"{config.encoder} could not make image.model {config.model!r} with image.weights {config.weights!r}{size}: "
        f"{first}; check model, weights and size (without a network, download the weights and give their path)"
    )
