"""Named folders under `EEGVISION_HOME`: whose a run is at the moment, and what it is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shlex
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from eegvision.vocab import InputError, RunInUseError, TryAgainError, home

_log = logging.getLogger(__name__)


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
def sole_owner(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder for this process and yield the number of its owner, one more than the last one's.

    A lock of the file system keeps out others on the same machine. Between machines it is only as good as the mount,
    and a machine that vanished may hold it for ever; so the owner also writes a number that grows (`.owners/000003`),
    and whoever comes next watches that number by its own clock for 35 s before it takes the folder over.

    Raises:
        InputError: the folder can be written by somebody else.
        RunInUseError: another process holds it; names the process and since when.
        TryAgainError: this process was silent for so long that another one took over.
    """
    private(folder)
    with (folder / ".lock").open("a+") as lock:
        is_locked = _lock(lock, folder)
        number = _take(folder, is_locked)
        owner = _Owner(folder, number)
        owner.start()
        try:
            yield number
        except KeyboardInterrupt:
            owner.refuse_if_replaced()
            raise
        finally:
            owner.stop()
        owner.refuse_if_replaced()


def private(folder: Path) -> None:
    """Make a folder that its owner alone can read and write, with those above it that lie in `EEGVISION_HOME`.

    Raises:
        InputError: it, or one above it in `EEGVISION_HOME`, belongs to somebody else or can be written by others.
    """
    for each in (*(parent for parent in reversed(folder.parents) if parent.is_relative_to(home())), folder):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = each.stat()
        if each != home() and (found.st_uid != os.getuid() or found.st_mode & stat.S_IWOTH):
            whose = "can be written by anybody" if found.st_uid == os.getuid() else f"belongs to user {found.st_uid}"
            raise InputError(
                f"{each} {whose}, and going on with a run executes what is stored there; make it yours alone (chown, "
                "chmod o-w) if you trust what is in it, or use another EEGVISION_HOME"
            )


# What file systems without locks answer to a request for one.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_BEAT_S = 10.0
_SILENT_S = 35.0


def _lock(lock: IO[str], folder: Path) -> bool:
    """Take the file system's lock and say whether that worked; False where it has none, or a machine that is gone."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if _host_of(_newest(folder)[1]) in (None, os.uname().nodename):
            raise _in_use(folder) from error
        return False
    return True


def _take(folder: Path, is_locked: bool) -> int:
    """Become the next owner, once the last one has left, or is known to be gone."""
    number, record = _newest(folder)
    has_left = number == 0 or (record is not None and record["left"])
    is_gone = is_locked and _host_of(record) == os.uname().nodename  # it held the lock, which this process has now
    if not has_left and not is_gone:
        _watch(folder, number)
    path = _owner_file(folder, number + 1)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    try:
        path.touch(exist_ok=False)  # of several that come at the same moment one gets the number
    except FileExistsError:
        raise _in_use(folder) from None
    for old in path.parent.glob("[0-9]*"):
        if int(old.name) < number:
            old.unlink(missing_ok=True)
    return number + 1


def _watch(folder: Path, number: int) -> None:
    """Return when the owner gives no sign of life for `_SILENT_S`; no clocks are compared, only what changes here."""
    path = _owner_file(folder, number)
    said, until = _content(path), time.monotonic() + _SILENT_S
    where = _host_of(_record(path)) or "another process"
    _log.warning("%s was held by %s; seeing for %g s whether that still runs", folder.name, where, _SILENT_S)
    while time.monotonic() < until:
        time.sleep(_SILENT_S / 50)
        if _content(path) != said or _newest(folder)[0] != number:
            raise _in_use(folder)
    _log.warning("%s is taken over from %s, which was silent for %g s", folder.name, where, _SILENT_S)


def _in_use(folder: Path) -> RunInUseError:
    record = _newest(folder)[1]
    who = "it has only just begun"
    if record is not None and not record["left"]:
        job = f", job {record['job']}" if record["job"] else ""
        age = f"{record['beat'] * _BEAT_S / 60:.0f} min ago" if record["beat"] else "just now"
        who = f"process {record['pid']} on {record['host']}{job}, begun {age}, {record['since']}"
    return RunInUseError(
        f"{folder.name!r} is being run by another process ({who}); wait for it, or give this one another --name"
    )


def _newest(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """Return the highest owner number and what that owner wrote: 0 without any, None where it is being written."""
    number = max((int(path.name) for path in (folder / ".owners").glob("[0-9]*") if path.name.isdigit()), default=0)
    return number, _record(_owner_file(folder, number)) if number else None


def _owner_file(folder: Path, number: int) -> Path:
    return folder / ".owners" / f"{number:06d}"


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _record(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(_content(path))
    except ValueError:
        return None


def _host_of(record: dict[str, Any] | None) -> str | None:
    return record["host"] if record else None


class _Owner:
    """Gives a sign of life while a folder is held, and stops this process if another one has taken it over."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number, self._beat = folder, number, 0
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._leaving = threading.Event()
        self._is_replaced = False
        self._thread = threading.Thread(target=self._keep_beating, name="owner", daemon=True)

    def start(self) -> None:
        self._write()
        self._thread.start()

    def stop(self) -> None:
        self._leaving.set()
        self._thread.join()
        if _newest(self._folder)[0] == self._number:
            with contextlib.suppress(OSError):  # a full disk: whoever comes next will see that nobody is there
                self._write(left=True)

    def refuse_if_replaced(self) -> None:
        if self._is_replaced:
            _, record = _newest(self._folder)
            raise TryAgainError(
                f"{self._folder.name!r} was taken over by {_host_of(record) or 'another process'} while this process "
                "was silent; it goes on there, and nothing more was written here"
            )

    def _keep_beating(self) -> None:
        while not self._leaving.wait(_BEAT_S):
            if _newest(self._folder)[0] > self._number:
                self._is_replaced = True
                # Unlike `interrupt_main` it also ends a wait in the system.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            self._beat += 1
            with contextlib.suppress(
                OSError
            ):  # storage that is away or full for a while; the next beat may come through
                self._write()

    def _write(self, *, left: bool = False) -> None:
        record = {"host": os.uname().nodename, "pid": os.getpid(), "job": _job_id(), "since": self._since}
        write_whole(_owner_file(self._folder, self._number), json.dumps({**record, "beat": self._beat, "left": left}))


def _job_id() -> str:
    """Return the submission id of the Ray job this process is, if it is one."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return (given.get("metadata") or {}).get("job_submission_id", "")


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


def check_drift(folder: Path, made_with: dict[str, str], *, allow: bool) -> list[str]:
    """Compare the code and versions a run was begun with to those of now, and return what differs, a sentence each.

    Raises:
        InputError: something differs and `allow` is not set.
    """
    path = folder / "made_with.json"
    before = json.loads(path.read_text()) if path.exists() else made_with
    differing = [
        f"{name} was {before.get(name)}, now {made_with.get(name)}"
        for name in sorted(before | made_with)
        if before.get(name) != made_with.get(name)
    ]
    if differing and not allow:
        raise InputError(
            f"{folder.name!r} was begun with something else ({'; '.join(differing)}), so its trials would not compare; "
            "go back to what it was begun with, give this run another --name, or go on with --allow-drift True, which "
            "its table then says"
        )
    return differing


def note_made_with(folder: Path, made_with: dict[str, str]) -> None:
    """Leave in a run's folder what code and versions it was begun with, unless it is there already."""
    if not (folder / "made_with.json").exists():
        write_whole(folder / "made_with.json", json.dumps(made_with, indent=2, sort_keys=True))


def note_command(folder: Path) -> None:
    """Leave in a run's folder the command that this process was called with, for whoever wants to run it again."""
    write_whole(folder / "command.txt", shlex.join(["python", *sys.argv]))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a loss of power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
