"""Work over the cluster and arrays shared by its processes; without Ray, threads of this process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import psutil

from eegvision import cluster
from eegvision.ingest.pieces import Rows

T = TypeVar("T")

_log = logging.getLogger(__name__)

_STORE_SHARE = 0.6  # of the smallest object store in the cluster
_HOST_SHARE = 0.4  # of all memory, without Ray. Not of what is free just now: a rerun must decide alike
# Starting Ray Data took 8 to 30 s on 2 cores (five processes import it); two threads read about this much meanwhile.
_SPREAD_BYTES = 1 << 30
# Until the loss of a machine is noticed, the shelf that was on it is found by its name and does not answer.
_PATIENCE_S, _AGAIN_S = 20.0, 1.0
_IN_FLIGHT_BYTES = 1 << 30  # of the object store that one pipeline may fill ahead of its reader


def in_order(plan: Sequence[T], work: Callable[[T], Rows], *, on_cluster: bool) -> Iterator[Rows]:
    """Yield the rows that `work` makes of each item of `plan`, in the plan's order, reading ahead within bounds.

    On the cluster this is a Ray Data pipeline, its tasks spread over the nodes; a large result may come in several
    parts. Otherwise threads of this process do the same work.

    Raises:
        InputError: raised by `work`.
    """
    if on_cluster and plan:  # Ray Data refuses an empty plan
        yield from _in_order_on_cluster(plan, work)
        return
    n_threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(n_threads) as pool:
        ahead: deque[Future[Rows]] = deque()
        for item in plan:
            ahead.append(pool.submit(work, item))
            if len(ahead) > n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _in_order_on_cluster(plan: Sequence[T], work: Callable[[T], Rows]) -> Iterator[Rows]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports every pipeline; failures arrive as exceptions
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=_IN_FLIGHT_BYTES)
    context.execution_options.resource_limits = limits
    n_tasks = min(len(plan), max(1, int(ray.cluster_resources().get("CPU", 1))))
    with ray.data.DataContext.current(context):
        items = ray.data.from_items([{"item": n} for n in range(len(plan))], override_num_blocks=len(plan))
    # Tasks that claimed CPUs would wait for ever for trials that hold them all and wait for the data: hence none.
    rows = items.map_batches(
        lambda batch: work(plan[int(batch["item"][0])]),
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=n_tasks),
    )
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
            yield cast("Rows", batch)
    except ray.exceptions.RayTaskError as error:
        raise cluster.cause(error) from None


class _Shelf:
    """Actor: arrays in Ray's object store, each made once for all processes of a job."""

    def __init__(self) -> None:
        self._refs: dict[tuple[str, ...], Any] = {}
        self._locks: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)

    def get(self, key: tuple[str, ...], make: Callable[[], np.ndarray]) -> list[Any]:
        import ray

        with self._locks[key]:
            if key not in self._refs:
                self._refs[key] = ray.put(make())
        return [self._refs[key]]


@cache  # an actor lives as long as its creator keeps the handle
def _shelf(address: str, job_id: str) -> Any:
    import ray.util.scheduling_strategies

    assert address == ray.get_runtime_context().gcs_address, "a handle is of use in its own cluster only"
    roomiest = max(_working_nodes(), key=_store_bytes)["NodeID"]
    options = {"name": f"arrays-{job_id}", "namespace": "eegvision", "get_if_exists": True, "max_concurrency": 8}
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(roomiest, soft=True)
    return ray.remote(_Shelf).options(**options, num_cpus=0, scheduling_strategy=place).remote()


def _working_nodes() -> list[dict[str, Any]]:
    """List the nodes that trials can run on: not a head that only keeps the books, with little memory."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in alive if node["Resources"].get("CPU")] or alive


def _store_bytes(node: dict[str, Any]) -> float:
    return node["Resources"].get("object_store_memory", 0.0)


def shared(key: tuple[str, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that `make` makes; on Ray the one every process of this job shares under `key`."""
    if not cluster.is_connected():
        return make()
    import ray

    context = ray.get_runtime_context()
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ray.get(ray.get(_shelf(context.gcs_address, context.get_job_id()).get.remote(key, make))[0])
        except ray.exceptions.RayTaskError as error:
            raise cluster.cause(error) from None
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            _shelf.cache_clear()  # the process that made the shelf has ended, and its arrays with it: make them again
            if time.monotonic() > until:
                _log.warning("arrays that processes share stay out of reach (%s); this process makes its own", error)
                return make()
        time.sleep(_AGAIN_S)


def is_worth_spreading(array: np.ndarray) -> bool:
    """Say whether filling an array is worth starting Ray Data for."""
    return cluster.is_connected() and array.nbytes >= _SPREAD_BYTES


def host_budget_bytes() -> float:
    """Return how many bytes of samples may stay in memory, here or in the cluster's object store."""
    if cluster.is_connected():
        return _STORE_SHARE * min(map(_store_bytes, _working_nodes()))
    return _HOST_SHARE * psutil.virtual_memory().total
