"""Why a training ended before its time, in words to count by, from whatever Ray wrapped the reason in."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Literal

from eegvision.vocab import TryAgainError

Kind = Literal["storage", "oom gpu", "oom host", "node", "killed", "superseded", "error"]

_WORDS = 300


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is inside it: Ray's wrappers, failures of a group of workers, causes; outermost first."""
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        inner = [getattr(found, name, None) for name in ("cause", "_base_exc", "__cause__")]
        inner += list(getattr(found, "worker_failures", {}).values())
        waiting += [each for each in inner if isinstance(each, BaseException)]


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error means that there is no space left, or that a quota is used up."""
    return any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in chain(error))


def kind_of(error: BaseException) -> Kind:
    """Return what ended a training; classes of Ray and torch are told by name, so neither is imported."""
    found = list(chain(error))
    names = {(type(each).__module__.partition(".")[0], type(each).__name__) for each in found}
    # Ray says of a process only that it is gone; why stands in the text.
    gone = [str(each) for each in found if type(each).__name__ in ("ActorDiedError", "RayActorError")]
    if any(isinstance(each, TryAgainError) for each in found) or is_disk_full(error):
        return "storage"
    if any(isinstance(each, MemoryError) for each in found) or ("ray", "OutOfMemoryError") in names:
        return "oom host"
    if any("OutOfMemoryError" in name for module, name in names if module != "ray"):
        return "oom gpu"
    # Of any process that was killed Ray says that it may have been for want of memory; this is said where it was.
    if any("running low on memory" in text or "due to memory pressure" in text for text in gone):
        return "oom host"
    if any(name == "Superseded" for _, name in names):
        return "superseded"
    if any(name == "NodeDiedError" for _, name in names) or any("node has died" in text for text in gone):
        return "node"
    if gone or any(name in ("WorkerCrashedError", "ActorUnavailableError") for _, name in names):
        return "killed"
    return "error"


def reason(error: BaseException) -> str:
    """Return what ended a training as `kind: what was said`, in one line."""
    said = {
        "oom host": "the machine ran out of memory and Ray ended the process; give each training more of it, for "
        "example with --memory-gb-per-trial, or run fewer at a time with --max-concurrent",
        "node": "the machine it ran on is gone",
        "killed": "its process was ended from outside, or crashed",
    }
    kind = kind_of(error)
    innermost = list(chain(error))[-1]
    lines = str(innermost).strip().splitlines() or [type(innermost).__name__]
    text = said.get(kind) or (lines[0] if len(lines) == 1 else lines[-1])
    return f"{kind}: {text.strip()[:_WORDS]}"
