"""Checkpoints that are whole or not there: safetensors and JSON, hashed, written aside and renamed into place.

    ROOT/pass-000007/
      model.safetensors  optimiser.safetensors ...   one file per group of tensors
      state.json                                      everything else
      manifest.json                                   size and SHA-256 of each file; written last

Nothing here is ever unpickled, so a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from eegvision.vocab import TryAgainError

FORMAT_VERSION = 1

_NAME = re.compile(r"\w[\w.-]*")
_WRITING = ".writing-"  # hidden, so that a half-written folder is never taken for a checkpoint

_log = logging.getLogger(__name__)

Tensors = dict[str, dict[str, Tensor]]


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or could not be written; the message says where, what and what to do."""


class NotWritten(CheckpointError, TryAgainError):  # noqa: N818
    """The disk has no room for a checkpoint, or refused it; with room the same command goes on."""


def save(
    root: Path,
    step_name: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
    *,
    files: Mapping[str, bytes] | None = None,
    owner: int = 0,
    require_owner: Callable[[], None] = lambda: None,
) -> Path:
    """Write ROOT/STEP_NAME, then remove the oldest checkpoints beyond `keep`.

    A crash at any moment leaves the earlier checkpoints as they were: files go to a temporary folder beside the
    final one, are flushed to disk, listed in the manifest, and the folder is renamed. A checkpoint of the same name
    is replaced. Folders are readable by their owner alone.

    Args:
        root: folder of the run's checkpoints; made if absent.
        step_name: a plain name; `latest` orders by the numbers in it.
        tensors: group name -> tensor name -> tensor; views, shared storage and any device are fine.
        state: what JSON can hold, without NaN or infinity.
        keep: checkpoints to keep, >= 1, this one included.
        files: further files by name, stored as they are and hashed like the rest.
        owner: number of the writer. Several may be alive when one was taken for dead and replaced; half-written
            folders are left alone where their writer has a higher number.
        require_owner: raises where this writer was replaced; asked first, and again when all is written and only the
            renaming is left.
    Returns:
        The folder written.
    Raises:
        NotWritten: too little free space, or the disk refused; says how much, where, and the remedy.
    """
    files = files or {}
    assert keep >= 1, keep
    names = (step_name, *tensors, *files)
    assert all(_NAME.fullmatch(name) for name in names), names
    contents = {"state.json": json.dumps(state, allow_nan=False, indent=1).encode(), **files}
    try:
        require_owner()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_leftovers(root, owner)
        _require_space(root, tensors, contents)
        folder = Path(tempfile.mkdtemp(prefix=f"{_WRITING}{owner:06d}-", dir=root))  # mode 0700
        try:
            final = _write(folder, root / step_name, tensors, contents, require_owner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        require_owner()  # whoever replaced this writer also swept up what it had half written
        raise NotWritten(
            f"could not write the checkpoint {root / step_name}: {error}; earlier checkpoints are untouched; check "
            "the free space and that the folder can be written to, then run the same command again to go on from there"
        ) from error
    others = [path for path in by_age(root) if path != final]
    for old in others[: max(0, len(others) + 1 - keep)]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(root: Path) -> Path | None:
    """Return the newest whole checkpoint under `root`, or None; damaged ones are skipped with a logged warning."""
    for path in reversed(by_age(root)):
        try:
            for _ in _verified(path):  # one file at a time: a model may fill a good part of the memory
                pass
        except CheckpointError as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
        else:
            return path
    return None


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a checkpoint folder after checking every byte of it: (tensors on the CPU by group and name, state).

    Raises:
        CheckpointError: a file is missing, too short or changed, or the format is a newer one; names the file.
    """
    contents = dict(_verified(path))
    try:
        tensors = {
            name.removesuffix(".safetensors"): load_tensors(content)
            for name, content in contents.items()
            if name.endswith(".safetensors")
        }
        return tensors, json.loads(contents["state.json"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} has the right hashes, but is no checkpoint of ours: {error!r}") from error


def record(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint folder without its tensors; of its files this one alone is checked.

    Raises:
        CheckpointError: as `load`.
    """
    contents = dict(_verified(path, only=("state.json",)))
    try:
        return json.loads(contents["state.json"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} has the right hashes, but is no checkpoint of ours: {error!r}") from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's manifest, which holds those of all its files."""
    return _sha256(path / "manifest.json")


def by_age(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first, damaged ones too: by the numbers in their names, because clocks jump."""

    def key(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")), key=key)


def _remove_leftovers(root: Path, owner: int) -> None:
    """Remove what writers up to `owner` have half written: they were killed, or replaced and so refused anyway."""
    for leftover in root.glob(f"{_WRITING}*"):
        number = leftover.name.removeprefix(_WRITING).partition("-")[0]
        if not number.isdigit() or int(number) <= owner:
            shutil.rmtree(leftover, ignore_errors=True)


def _write(
    folder: Path,
    final: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    contents: Mapping[str, bytes],
    require_owner: Callable[[], None],
) -> Path:
    """Fill the temporary `folder` and rename it to `final`."""
    for group, named in tensors.items():
        save_file(_separate(named), folder / f"{group}.safetensors")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    for path in folder.iterdir():
        _flush(path)
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT_VERSION, "files": listed}, indent=1))
    _flush(folder / "manifest.json")
    _flush(folder)
    require_owner()
    if final.exists():
        # A folder that is not empty cannot be renamed over. Between these two lines the previous checkpoint counts.
        final.rename(folder.with_name(f"{folder.name}.replaced"))
    folder.rename(final)
    _flush(final.parent)
    shutil.rmtree(folder.with_name(f"{folder.name}.replaced"), ignore_errors=True)
    return final


def _separate(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors that share no storage: the format stores each one's bytes once, in order."""
    taken: set[int] = set()
    separate = {}
    for name, tensor in named.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        taken.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate


def _require_space(root: Path, tensors: Mapping[str, Mapping[str, Tensor]], contents: Mapping[str, bytes]) -> None:
    n_tensors = sum(len(named) for named in tensors.values())
    needed = sum(tensor.numel() * tensor.element_size() for named in tensors.values() for tensor in named.values())
    # Headers, the manifest and partly filled blocks: generous, because a full disk in mid-write helps nobody.
    needed += sum(map(len, contents.values())) + 512 * n_tensors + 65_536
    free = shutil.disk_usage(root).free
    if needed > free:
        raise NotWritten(
            f"a checkpoint needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free at {root}; "
            "free some space or point EEGVISION_HOME at a larger disk, then run the same command again"
        )


def _verified(path: Path, only: Container[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the files the manifest lists, or raise `CheckpointError` naming what is wrong."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        version, listed = manifest["format"], manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'manifest.json'} is missing or unreadable: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format {version!r}; this version reads {FORMAT_VERSION}")
    for name, (size, digest) in expected.items():
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"{path / 'manifest.json'} lists {name!r}, which is no plain file name")
        if only is not None and name not in only:
            continue
        try:
            content = (path / name).read_bytes()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / name} is missing or unreadable: {error!r}") from error
        if len(content) != size:
            raise CheckpointError(f"{path / name} has {len(content)} bytes; the manifest says {size}")
        if (actual := hashlib.sha256(content).hexdigest()) != digest:
            raise CheckpointError(f"{path / name} has changed: SHA-256 {actual}; the manifest says {digest}")
        yield name, content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
