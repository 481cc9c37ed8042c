"""A function over many items as Ray tasks: bounded, retried when a machine is lost, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from eegvision import cluster, failures
from eegvision.vocab import TryAgainError

T = TypeVar("T")
R = TypeVar("R")

_RETRIES = 3  # of a task whose process or machine was lost; an exception of the function is not retried
_AHEAD = 2  # tasks submitted per CPU: the next ones wait with their arguments on the way


def spread(
    work: Callable[[T], R],
    items: Sequence[T],
    *,
    peak_bytes: Callable[[T], int] = lambda _: 0,
    cpus: float = 1.0,
    gpus: float = 0.0,
    lost: Callable[[T, str], R] | None = None,
) -> Iterator[R]:
    """Apply a function to items on the cluster this process is connected to; yield results in the order of finishing.

    A task is done again when its process or machine is lost, so the function must bear being called twice. When it
    raises, or the caller stops, tasks that run are ended and none is started any more.

    Args:
        work: goes to other processes with the item.
        items: one task each.
        peak_bytes: memory an item takes; tasks that would not fit beside each other wait.
        cpus, gpus: what a task holds, fractions allowed.
        lost: called with an item whose process or machine was lost every time, and why; what it returns is yielded
            and the other items go on. By default the loss is raised.
    Raises:
        InputError, TryAgainError: raised by `work`; other exceptions as `ray.exceptions.RayTaskError`.
        RayError: a task was lost every time, and `lost` is not given.
    """
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(_call)
    shared = ray.put(work)
    most = max(1, int(_AHEAD * ray.cluster_resources().get("CPU", 1)))
    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    waiting = list(reversed(items))
    running: dict[Any, T] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                item = waiting.pop()
                # An item that is larger than any machine still gets its try, alone on one.
                memory = min(peak_bytes(item), int(0.9 * largest))
                running[task.options(memory=memory or None).remote(shared, item)] = item
            finished = ray.wait(list(running), num_returns=1)[0][0]
            item = running.pop(finished)
            try:
                result = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error, TryAgainError):  # Ray's copy of it says where it was raised, at length
                    raise TryAgainError(str(error.cause)) from None
                raise cluster.cause(error) from None
            except ray.exceptions.RayError as error:
                if lost is None:
                    raise
                result = lost(item, failures.reason(error))
            yield result
    finally:
        for task_ref in running:
            ray.cancel(task_ref, force=True)


def _call(work: Callable[[T], R], item: T) -> R:
    return work(item)
