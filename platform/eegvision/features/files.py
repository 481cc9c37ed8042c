"""Features from files we did not make: NICE's, ATM's and UBP's layouts and plain ones, held against the data set.

| file | rows |
|---|---|
| `.npy` [N,F] or [N,1,F] (NICE: `clip_feature_maps_*.npy`) | pictures in the field's order |
| `.pt`, `.safetensors` with `img_features`, `text_features` [N,F] (ATM: `ViT-H-14_features_*.pt`) | the same |
| the same with dicts {name: vector} (UBP) | by name |
| a dict {name: vector}, or {"image_id": [...], "features": [N,F]} | by name |

The field's order is that of the sorted names, training pictures before test pictures. A `*` in the path stands for two
files, one with `train` and one with `test` in its place. Names are image ids, or end in FOLDER/FILE as pictures of
THINGS do; of texts they may be classes. Nothing in a file is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch

from eegvision.ingest import shards
from eegvision.ingest.places import Place
from eegvision.ingest.shards import Manifest
from eegvision.vocab import InputError

Kind = Literal["img_features", "text_features"]
Say = Callable[[str], None]

_NAMES = ("image_id", "class", "name")
_ELSE = 'give a dict {"image_id": [...], "features": tensor [N,F]}'
_UNIT = 1e-3  # how far from 1 the length of a unit vector may be in a file of half precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """The pictures of a data set without the pictures: M images in stored order, `label_M` -1 where none is known."""

    root: Place
    manifest: Manifest
    image_id_M: np.ndarray
    label_M: np.ndarray
    is_test_M: np.ndarray
    pictures_sha256: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that labels count."""
        return self.manifest.classes


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What a file holds: rows [N,F], and what they are called if it says so."""

    path: str
    row_NF: np.ndarray
    names: tuple[str, ...] | None = None


def read_catalogue(dataset: str) -> Catalogue:
    """Return the pictures of a data set; errors as `shards.read_images`."""
    root = shards.dataset_root(dataset)
    manifest = shards.read_manifest(root)
    table = shards.read_images(root, manifest, columns=["image_id", "label", "sha256"])
    image_id_M = np.array(table["image_id"].to_pylist())
    return Catalogue(
        root=root,
        manifest=manifest,
        image_id_M=image_id_M,
        label_M=table["label"].to_numpy().astype(np.int64),
        is_test_M=np.isin(image_id_M, manifest.published.get("test", ())),
        pictures_sha256=hashlib.sha256("\n".join(table["sha256"].to_pylist()).encode()).hexdigest(),
    )


def read_features(path: str, kind: Kind, catalogue: Catalogue, *, say: Say | None = None) -> np.ndarray:
    """Return features of every picture from a file, or from two with a `*` in the path.

    Text features may have one row per class instead.

    Args:
        kind: which part of a file that holds both.
        say: prints how many there are and how long the vectors are.
    Returns:
        float32 [M,F], read-only, in the order of the catalogue.
    Raises:
        InputError: a file is missing, damaged or of an unknown layout, a value is not finite, or rows and pictures do
            not match; names file, row or picture, and the remedy.
    """
    if "*" in path:
        sides = {"train": ~catalogue.is_test_M, "test": catalogue.is_test_M}
        files = _pair(path, catalogue)
    else:
        sides = {"all": np.ones(len(catalogue.image_id_M), dtype=bool)}
        files = {"all": path}
    found = {side: _read(file, kind) for side, file in files.items()}
    widths = {side: own.row_NF.shape[1] for side, own in found.items()}
    if len(set(widths.values())) > 1:
        raise InputError(f"{path} has features of {' and '.join(map(str, widths.values()))} dimensions; give one kind")
    feature_MF = np.empty((len(catalogue.image_id_M), next(iter(widths.values()))), dtype=np.float32)
    for side, own in found.items():
        row_m = np.flatnonzero(sides[side])
        feature_MF[row_m] = own.row_NF[_rows_of(own, kind, catalogue, row_m)]
    if say is not None:
        say(f"{path}: {feature_MF.shape[0]:,} x {feature_MF.shape[1]}, {_lengths(feature_MF)}")
    feature_MF.setflags(write=False)
    return feature_MF


def _pair(pattern: str, catalogue: Catalogue) -> dict[str, str]:
    """Return the training and the test file that a path with a `*` stands for."""
    path = Path(pattern).expanduser()
    if not catalogue.is_test_M.any() or catalogue.is_test_M.all():
        raise InputError(
            f"{pattern!r} stands for a training and a test file, but data set {catalogue.manifest.name!r} does not "
            f"come with published training and test pictures; {_ELSE}"
        )
    before, _, after = path.name.partition("*")
    found: dict[str, list[str]] = {"train": [], "test": []}
    for file in sorted(path.parent.glob(path.name)):
        middle = file.name[len(before) : len(file.name) - len(after)].lower()
        for side, own in found.items():
            if side in middle:
                own.append(str(file))
    for side, own in found.items():
        if len(own) != 1:
            there = f"are {len(own)}: {', '.join(own)}" if own else "is none"
            raise InputError(
                f"{pattern!r} must stand for one file with {side!r} in place of the *; there {there}; correct the "
                "path, or rename the files"
            )
    return {side: own[0] for side, own in found.items()}


def _read(where: str, kind: Kind) -> _Found:
    path = Path(where).expanduser()
    if not path.is_file():
        raise InputError(f"{where!r} is not a file (looked in {Path.cwd()}); correct the path of the features")
    try:
        if path.suffix == ".npy":
            content: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead NumPy and torch to errors of every type
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"features {where} cannot be read ({first}); only plain arrays and tensors are: copy the file again, or "
            "save it with np.save or torch.save without other objects"
        ) from error
    names, rows = _parts(content, kind, where)
    row_NF = _matrix(rows, names, where)
    if names is not None and len(names) != len(row_NF):
        raise InputError(f"{where} has {len(names)} names for {len(row_NF)} rows of features; save it again")
    return _Found(path=where, row_NF=row_NF, names=names)


def _parts(content: Any, kind: Kind, where: str) -> tuple[tuple[str, ...] | None, Any]:
    """Return names, if there are any, and rows of whatever a file holds."""
    if not isinstance(content, Mapping):
        return None, content
    if kind in content:
        return _parts(content[kind], kind, where)
    if "features" in content:
        names = next((content[key] for key in _NAMES if key in content), None)
        if names is not None and not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
            raise InputError(f"{where} has names that are not a list of words; {_ELSE}")
        return None if names is None else tuple(names), content["features"]
    if content and all(isinstance(key, str) and _is_vector(value) for key, value in content.items()):
        vectors = [torch.as_tensor(value).reshape(-1) for value in content.values()]
        for name, vector in zip(content, vectors, strict=True):
            if len(vector) != len(vectors[0]):
                raise InputError(
                    f"{where} has {len(vector)} values for {name!r} and {len(vectors[0])} for {next(iter(content))!r}; "
                    "all need as many"
                )
        return tuple(content), torch.stack(vectors)
    shown = ", ".join(map(str, list(content)[:5])) or "nothing"
    raise InputError(f"{where} holds a dict with {shown}; expected `{kind}`, `features` or a vector per name: {_ELSE}")


def _is_vector(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.ndim == 1 or (value.ndim == 2 and len(value) == 1))


def _matrix(rows: Any, names: tuple[str, ...] | None, where: str) -> np.ndarray:
    """Return rows as finite float32 [N,F]."""
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().float().numpy() if rows.is_floating_point() else rows.numpy()
    is_numbers = isinstance(rows, np.ndarray) and rows.dtype.kind == "f"
    if is_numbers and rows.ndim == 3 and rows.shape[1] == 1:
        rows = rows[:, 0]
    if not is_numbers or rows.ndim != 2 or 0 in rows.shape:
        what = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else f"a {type(rows).__name__}"
        raise InputError(f"{where} holds {what}; expected fractional numbers of shape [N,F] or [N,1,F]")
    row_NF = np.asarray(rows, dtype=np.float32)
    is_bad_NF = ~np.isfinite(row_NF)
    if is_bad_NF.any():
        row, column = np.argwhere(is_bad_NF)[0].tolist()
        name = f" ({names[row]!r})" if names is not None and row < len(names) else ""
        raise InputError(
            f"{where} has the value {row_NF[row, column]} in row {row}{name}, column {column}; features must be "
            "finite: make them again (half precision may have overflowed)"
        )
    return row_NF


def _rows_of(found: _Found, kind: Kind, catalogue: Catalogue, row_m: np.ndarray) -> np.ndarray:
    """Return, for each of the chosen pictures, the row of a file that belongs to it."""
    if found.names is not None:
        return _rows_by_name(found, kind, catalogue, row_m)
    n_rows, name = len(found.row_NF), catalogue.manifest.name
    _require_order(found.path, catalogue, row_m)
    if n_rows == len(row_m):
        return np.arange(n_rows)
    label_m = catalogue.label_M[row_m]
    classes = np.array(list(dict.fromkeys(label_m.tolist())))  # as they come in the field's order
    if kind == "text_features" and n_rows == len(classes) and (label_m >= 0).all():
        order = np.argsort(classes)
        return order[np.searchsorted(classes, label_m, sorter=order)]
    also = f" of {len(classes)} classes" if kind == "text_features" else ""
    raise InputError(
        f"{found.path} has {n_rows} rows, but data set {name!r} has {len(row_m)} pictures{also} there; take the "
        f"features of this release's pictures, or name the rows: {_ELSE}"
    )


def _require_order(path: str, catalogue: Catalogue, row_m: np.ndarray) -> None:
    """Refuse rows without names where the data set's pictures are not in the order that such files have."""
    names, is_test = catalogue.image_id_M[row_m], catalogue.is_test_M[row_m]
    in_turn = [*sorted(names[~is_test].tolist()), *sorted(names[is_test].tolist())]
    if names.tolist() in (sorted(names.tolist()), in_turn):
        return
    first = next(n for n, (one, other) in enumerate(zip(names.tolist(), in_turn, strict=True)) if one != other)
    raise InputError(
        f"the rows of {path} have no names, and the pictures of data set {catalogue.manifest.name!r} are not in the "
        f"order of their names (picture {first} is {str(names[first])!r}, by name it would be {in_turn[first]!r}): "
        f"which row belongs to which is not certain; {_ELSE}"
    )


def _rows_by_name(found: _Found, kind: Kind, catalogue: Catalogue, row_m: np.ndarray) -> np.ndarray:
    assert found.names is not None
    row_of = {name: row for row, name in enumerate(found.names)}
    if len(row_of) != len(found.names):
        twice = next(name for name in row_of if found.names.count(name) > 1)
        raise InputError(f"{found.path} has {twice!r} more than once; keep one row for each")
    short = {_tail(name): row for name, row in row_of.items()}
    has_short = len(short) == len(row_of)
    rows = []
    for m in row_m.tolist():
        image_id, label = str(catalogue.image_id_M[m]), int(catalogue.label_M[m])
        row = row_of.get(image_id)
        if row is None and has_short:
            row = short.get(_tail(image_id))
        if row is None and kind == "text_features" and label >= 0:
            row = row_of.get(catalogue.classes[label])
        if row is None:
            own = f" (class {catalogue.classes[label]!r})" if kind == "text_features" and label >= 0 else ""
            raise InputError(
                f"{found.path} has no features for picture {image_id!r}{own} of data set "
                f"{catalogue.manifest.name!r}; its {len(row_of)} names are such as {found.names[0]!r}: "
                "add what is missing, or use the data set's image ids"
            )
        rows.append(row)
    return np.array(rows)


def _tail(name: str) -> str:
    """Return FOLDER/FILE without a suffix, by which pictures of THINGS are known everywhere."""
    path = PurePosixPath(name)
    return "/".join([*path.parts[-2:-1], path.stem if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.name])


def _lengths(feature_MF: np.ndarray) -> str:
    length_M = np.linalg.norm(feature_MF, axis=1)
    if np.abs(length_M - 1).max() < _UNIT:
        return "of unit length"
    return f"of lengths {length_M.min():.3g} to {length_M.max():.3g}"
