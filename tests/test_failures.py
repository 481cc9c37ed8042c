"""eegvision.failures: what ended a training, told from what Ray makes of it."""

import errno

import pytest
import ray.exceptions
import torch

from eegvision.failures import is_disk_full, kind_of, reason
from eegvision.resume import Superseded
from eegvision.vocab import TryAgainError

FULL = OSError(errno.ENOSPC, "No space left on device")
QUOTA = OSError(errno.EDQUOT, "Disk quota exceeded")


def wrapped(error: Exception) -> Exception:
    """What `ray.get` raises where a task raised `error`."""
    return ray.exceptions.RayTaskError("train", "Traceback (most recent call last): ...", error).as_instanceof_cause()


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def died(why: str) -> Exception:
    error = ray.exceptions.ActorDiedError()
    error.error_msg = f"The actor died unexpectedly before finishing this task. {why}"
    error.args = (error.error_msg,)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FULL, "storage"),
        (wrapped(QUOTA), "storage"),
        (wrapped(TryAgainError("no space is left")), "storage"),
        (caused(RuntimeError("could not write the checkpoint"), FULL), "storage"),
        (wrapped(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "oom gpu"),
        (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."), "oom host"),
        (died("The worker process was killed due to memory pressure (OOM)."), "oom host"),
        (wrapped(MemoryError()), "oom host"),
        (died("The actor died because its node has died. Node Id: abc"), "node"),
        (died("1 worker(s) were killed due to the node running low on memory."), "oom host"),
        (
            died("Some common causes include: (1) the process was killed by the OOM killer due to high memory usage"),
            "killed",
        ),
        (ray.exceptions.WorkerCrashedError(), "killed"),
        (wrapped(Superseded("attempt 1 was replaced")), "superseded"),
        (wrapped(ZeroDivisionError("division by zero")), "error"),
    ],
)
def test_what_ended_a_training_is_told_by_kind(error, kind):
    assert kind_of(error) == kind
    assert reason(error).startswith(f"{kind}: ")
    assert "\n" not in reason(error)
    assert is_disk_full(error) == (kind == "storage" and not isinstance(error, TryAgainError))


def test_the_reason_is_in_the_words_of_the_innermost_error():
    assert reason(wrapped(ZeroDivisionError("division by zero"))) == "error: division by zero"
    assert "--memory-gb-per-trial" in reason(died("killed due to memory pressure (OOM)"))
