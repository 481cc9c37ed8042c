"""Which features a run asks for, and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from eegvision import cluster
from eegvision.config import RunConfig
from eegvision.features import cache, files
from eegvision.features.files import Catalogue, read_catalogue
from eegvision.vocab import InputError

Say = Callable[[str], None]


def image_features(config: RunConfig, *, say: Say | None = None) -> np.ndarray | None:
    """Return the frozen features of every picture of the data set; None where pictures themselves are wanted.

    Features of a network come from the cache, mapped into memory; if they are not there yet, this process makes them
    (`warm` lets the whole cluster do so). Another process that is at it already is waited for. `file` reads what
    `files.read_features` describes; `random-codebook` gives each class (each picture, where there are no classes)
    a random vector of unit length that depends on its name and D alone.

    Args:
        say: prints a line.
    Returns:
        float32 [M,F], read-only, in the order of the data set's images (`stream.Store.image_id_M`).
    Raises:
        InputError: network, weights or file cannot be had, or a file does not fit the data set.
    """
    image = config.image
    if config.loss.arm == "eeg" or not image.is_frozen:
        return None
    catalogue = read_catalogue(config.data.dataset)
    if image.encoder == "random-codebook":
        return _codebook(catalogue, image.embed_dim)
    if image.encoder == "file":
        assert image.features is not None
        return files.read_features(image.features, "img_features", catalogue, say=say)
    return cache.features(catalogue, [image], say=say, on_cluster=False)[0]


def text_features(config: RunConfig, *, say: Say | None = None) -> np.ndarray | None:
    """Return text features for every picture, from one per picture or per class; None where no text is set.

    Returns:
        float32 [M,D], read-only, in the order of the data set's images.
    Raises:
        InputError: the file cannot be read, does not fit the data set, or its features have not D dimensions.
    """
    image = config.image
    if image.text is None:
        return None
    text_MF = files.read_features(image.text, "text_features", read_catalogue(config.data.dataset), say=say)
    if text_MF.shape[1] != image.embed_dim:
        raise InputError(
            f"image.text {image.text} has features of {text_MF.shape[1]} dimensions, but embeddings have "
            f"{image.embed_dim}; set image.embed_dim and eeg.embed_dim to {text_MF.shape[1]}, or give other texts"
        )
    return text_MF


def warm(configs: Sequence[RunConfig], *, say: Say) -> None:
    """Make all features that these runs need, over the cluster this process is connected to; check files.

    All layers wanted of one network come from one pass over the pictures. Call it in the driver before trials, which
    then find everything in the cache.

    Raises:
        InputError: as `image_features` and `text_features`.
    """
    groups: dict[str, list[RunConfig]] = {}
    checked: set[str] = set()
    for config in configs:
        image = config.image
        if image.text is not None and (what := f"{config.data.dataset} {image.text} {image.embed_dim}") not in checked:
            checked.add(what)
            text_features(config, say=say)
        if config.loss.arm == "eeg" or not image.is_frozen:
            continue
        if image.encoder in ("file", "random-codebook"):
            if (what := f"{config.data.dataset} {image.features}") not in checked:
                checked.add(what)
                image_features(config, say=say)
            continue
        groups.setdefault(f"{config.data.dataset} {cache.network_of(image)!r}", []).append(config)
    for own in groups.values():
        catalogue = read_catalogue(own[0].data.dataset)
        images = [config.image for config in own]
        cache.features(catalogue, images, say=say, on_cluster=cluster.is_connected())


def _codebook(catalogue: Catalogue, n_dims: int) -> np.ndarray:
    names = [
        f"class {catalogue.classes[label]}" if label >= 0 else f"image {image_id}"
        for image_id, label in zip(catalogue.image_id_M.tolist(), catalogue.label_M.tolist(), strict=True)
    ]
    vector_of = {name: _unit_vector(name, n_dims) for name in dict.fromkeys(names)}
    code_MD = np.stack([vector_of[name] for name in names])
    code_MD.setflags(write=False)
    return code_MD


def _unit_vector(name: str, n_dims: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    vector_D = np.random.default_rng([seed, n_dims]).standard_normal(n_dims)
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)
