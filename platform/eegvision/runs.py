"""Named folders under `EEGVISION_HOME`: whose a run is at the moment, and what it is."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from eegvision.vocab import InputError, RunInUseError, home


def named_folder(kind: Literal["datasets", "runs"], name: str) -> Path:
    """Return the absolute folder of the data set, run or sweep `name`, whether or not it exists.

    Raises:
        InputError: the name would not be one folder (it becomes part of paths and of MLflow's keys).
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(
            f"the name {name!r} must be 1 to 100 letters, digits, '.', '_' and '-', the first one a letter or digit"
        )
    return home() / kind / name


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder for this process.

    Raises:
        RunInUseError: another process holds it; names the process and since when.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise RunInUseError(
                f"{folder.name!r} is being run by another process ({lock.read().strip()}); "
                "wait for it, or give this one another --name"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        lock.flush()
        yield


def check_claim(folder: Path, identity: dict[str, Any]) -> bool:
    """Say whether a folder holds the sweep `identity` already.

    Raises:
        RunInUseError: the folder holds another sweep; lists every difference.
    """
    path = folder / "sweep.json"
    if not path.exists():
        return False
    before, now = json.loads(path.read_text()), json.loads(json.dumps(identity))
    differing = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    if differing:
        lines = "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in differing)
        raise RunInUseError(
            f"the name {folder.name!r} is in use by another sweep ({lines}); "
            "give this one another --name, or repeat the first command to resume it"
        )
    return True


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write what a sweep is into its folder, unless it is there already; errors as `check_claim`."""
    if not check_claim(folder, identity):
        write_whole(folder / "sweep.json", json.dumps(identity, indent=2, sort_keys=True))


def note_command(folder: Path) -> None:
    """Leave in a run's folder the command that this process was called with, for whoever wants to run it again."""
    write_whole(folder / "command.txt", shlex.join(["python", *sys.argv]))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text)
    temporary.rename(path)
