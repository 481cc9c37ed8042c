"""Chunks over actors: as many as find room on the cluster, each holding what it needs; any of them may be lost."""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eegvision import cluster
from eegvision.fanout.chunks import (
    TRIES,
    Book,
    Chunk,
    Failed,
    Results,
    Work,
    Worker,
    open_folder,
    results,
    storage_fault,
)
from eegvision.fanout.progress import Say
from eegvision.runs import sole_owner

_LOOK_S = 1.0  # how long to wait for results before looking round the cluster again
_DISK = "disk"  # the thread of a worker that writes
_WORDS = 400  # of Ray's message about a lost actor, in letters


def compute(
    prepare: Callable[[], Work],
    chunks: Sequence[Chunk],
    folder: Path,
    *,
    identity: Mapping[str, Any],
    unit: str,
    say: Say,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Results:
    """Apply a function that is costly to make to every chunk; leave one file of arrays for each.

    Connected to Ray, as many workers as find room on the cluster share the chunks, also when machines come and go;
    otherwise this process works on one after the other. Finished chunks of earlier calls are not computed again. A
    lost worker costs the chunk it was at; others do that one. A chunk that ended its process three times, or whose
    function raised, is set aside until all others are done. Files do not depend on the number of workers, the order
    of chunks or what was lost, as long as `prepare`'s function does not.

    Args:
        prepare: called once in every worker, loads the model there; returns the function from a chunk's `item` to
            its named arrays (no objects; text as <U). Goes to other processes once each, as do the items.
        folder: on storage that all machines of the cluster share.
        identity: what decides the results, as JSON can hold it; a folder holds one.
        unit: singular noun for what `Chunk.size` counts.
        say: prints a line.
        cpus, gpus: what each worker holds; fractions allowed, one of them above 0.
    Raises:
        InputError: raised by `prepare` or its function; the folder holds something else, or cannot be written.
        TryAgainError: the disk is full.
        RunInUseError: another process computes into this folder.
        RuntimeError: chunks were set aside, or no worker could be started.
    """
    keys = [chunk.key for chunk in chunks]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", key) for key in keys), keys
    assert len(set(keys)) == len(keys), "keys name files"
    assert cpus > 0 or gpus > 0, (cpus, gpus)
    folder = folder.resolve()
    with sole_owner(folder):
        try:
            done = open_folder(folder, identity, keys)
            with Book(folder, chunks, done, unit, say) as book:
                if book.waiting and cluster.is_connected():
                    with _Crew(prepare, book, folder, cpus, gpus) as crew:
                        crew.work()
                elif book.waiting:
                    _work_here(prepare, book, folder)
                book.finish()
        except OSError as error:
            if full := storage_fault(error, folder):
                raise full from error
            raise
    return results(folder)


def _work_here(prepare: Callable[[], Work], book: Book, folder: Path) -> None:
    """Compute all waiting chunks in this process."""
    worker = Worker(prepare, [(chunk.key, chunk.item) for chunk in book.chunks], folder)
    book.say("loading the model ...")
    if failed := worker.begin():
        failed.stop()
        raise RuntimeError(failed.reason)
    book.progress.begin()
    while book.waiting:
        number = book.waiting.popleft()
        worker.compute(number)
        book.enter(number, worker.write(number))
        book.at()


class _Hired(Worker):
    """A worker with a process of its own."""

    def begin(self) -> Failed | None:
        """Make the function."""
        failed = super().begin()
        # As long as anything waits for room, Ray has every process of the cluster collect garbage, every 10 s: with
        # what is loaded left out of it that costs a millisecond, not a tenth of a second.
        gc.collect()
        gc.freeze()
        return failed


@dataclass(frozen=True)
class _Call:
    """A chunk that a worker has, and the reference that tells that it is computed."""

    number: int
    computed: Any


@dataclass(eq=False)
class _Member:
    """A worker on the cluster: asked for; ready once `begun` is None; with the chunks it has by what they wait for."""

    actor: Any
    begun: Any
    asked_s: float
    calls: dict[Any, _Call] = field(default_factory=dict)


class _Crew:
    """As many workers as find room, each with a chunk in work and one to follow."""

    def __init__(self, prepare: Callable[[], Work], book: Book, folder: Path, cpus: float, gpus: float) -> None:
        import ray
        import ray.exceptions

        self._ray: Any
        self._ray, self._book, self._folder, self._needs = ray, book, folder, {"CPU": cpus, "GPU": gpus}
        # Ray would restart an actor where it was; we ask for a new one wherever there is room, and know that it did.
        remote: Any = ray.remote  # whose types leave concurrency_groups out
        options = {"num_cpus": cpus, "num_gpus": gpus, "concurrency_groups": {_DISK: 1}}
        self._kind = remote(**options, max_restarts=0, max_task_retries=0)(_Hired)
        self._prepare = ray.put(prepare)
        self._items = ray.put([(chunk.key, chunk.item) for chunk in book.chunks])
        self._members: list[_Member] = []
        self._n_places = 0
        self._looked_s = self._failed_s = self._ask_again_s = -math.inf
        self._n_bad_starts = 0

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for member in list(self._members):
            self._dismiss(member)

    def work(self) -> None:
        """Have all waiting chunks computed."""
        while self._book.waiting or any(member.calls for member in self._members):
            self._look_round()
            self._hand_out()
            self._say()
            by_ref = {member.begun: member for member in self._members if member.begun is not None}
            by_ref |= {ref: member for member in self._members for ref in member.calls}
            if not by_ref:
                time.sleep(_LOOK_S)
                continue
            self._ray.wait(list(by_ref), num_returns=1, timeout=_LOOK_S, fetch_local=True)
            # All that is there by now, in the order of submission: of a lost worker the first call without an answer
            # is the one it was at.
            finished, _ = self._ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
            for ref in finished:
                if by_ref[ref] in self._members:
                    self._receive(by_ref[ref], ref)

    def _look_round(self) -> None:
        """Ask for workers where there may be room, and take back what will not be needed."""
        now = time.monotonic()
        if now - self._looked_s >= _LOOK_S:
            self._looked_s, self._n_places = now, self._count_places()
        n_busy = sum(bool(member.calls) for member in self._members)
        # As many again wait for room: they take the place of a lost one at once, and have an autoscaler add machines.
        n_spare = 0 if self._n_bad_starts else self._n_places
        n_wanted = min(n_busy + len(self._book.waiting), max(1, self._n_places + n_spare))
        for member in [member for member in reversed(self._members) if member.begun is not None]:
            if len(self._members) > n_wanted:
                self._dismiss(member)
        if now >= self._ask_again_s:
            while len(self._members) < n_wanted:
                actor = self._kind.remote(self._prepare, self._items, self._folder)
                self._members.append(_Member(actor=actor, begun=actor.begin.remote(), asked_s=now))

    def _count_places(self) -> int:
        """Return how many workers the machines could hold, empty."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = [(kind, need) for kind, need in self._needs.items() if need]
        # 1e-6: ten tenths are one.
        return sum(min(int(node.get(kind, 0) / need + 1e-6) for kind, need in needs) for node in nodes)

    def _hand_out(self) -> None:
        """Give every ready worker a chunk, then one to follow while there are enough for all."""
        waiting, ready = self._book.waiting, [member for member in self._members if member.begun is None]
        for n_calls in (0, 1):
            for member in ready:
                is_end = len(waiting) <= max(self._n_places, len(ready))
                # At the end each goes to whoever is free, so that none waits behind another while a worker is idle.
                if len(member.calls) == n_calls and waiting and not (n_calls and is_end):
                    number = waiting.popleft()
                    computed = member.actor.compute.remote(number)
                    written = member.actor.write.options(concurrency_group=_DISK).remote(number)
                    member.calls[written] = _Call(number, computed)

    def _receive(self, member: _Member, ref: Any) -> None:
        is_lost = False
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            answer, is_lost = Failed(reason=_why_lost(error), whose="process"), True
        if ref == member.begun:
            if answer is None:
                member.begun, self._n_bad_starts = None, 0
                self._book.progress.begin()
            else:
                self._not_begun(member, answer)
        elif isinstance(answer, Failed) and answer.whose == "process":
            # A worker says itself at which chunk; of one that was lost, a chunk that is computed and was still to be
            # written is not what ended it.
            own = member.calls[ref]
            calls = sorted(member.calls.values(), key=self._is_computed if is_lost else lambda call: call is not own)
            self._book.waiting.extendleft(call.number for call in reversed(calls[1:]))
            self._dismiss(member)
            self._book.lose(calls[0].number, answer.reason)
        else:
            self._book.enter(member.calls.pop(ref).number, answer)

    def _is_computed(self, call: _Call) -> bool:
        try:
            self._ray.get(call.computed, timeout=0)
        except self._ray.exceptions.RayError:
            return False
        return True

    def _not_begun(self, member: _Member, failed: Failed) -> None:
        """Bear that a worker does not start, as on a broken machine, as long as others do."""
        self._dismiss(member)
        failed.stop()
        if member.asked_s > self._failed_s:  # those that were asked for together fail together
            self._n_bad_starts += 1
            self._book.say(f"a worker could not start ({failed.reason})")
        self._failed_s = time.monotonic()
        self._ask_again_s = self._failed_s + min(30.0, 2.0 ** (self._n_bad_starts - 1))
        if self._n_bad_starts >= TRIES and not self._members:
            raise RuntimeError(
                f"no worker could start, in {TRIES} attempts: {failed.reason}; what is finished stays usable in "
                f"{self._folder}"
            )

    def _dismiss(self, member: _Member) -> None:
        """End a worker, also one that Ray has lost sight of, and forget it."""
        self._members.remove(member)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)

    def _say(self) -> None:
        n_ready = sum(member.begun is None for member in self._members)
        if n_ready:
            gpus = f", {n_ready * self._needs['GPU']:g} GPUs" if self._needs["GPU"] else ""
            self._book.at(f", {n_ready} worker{'s' * (n_ready > 1)}{gpus}")
        elif self._n_places:
            n_asked = min(len(self._members), self._n_places)
            self._book.progress.instead(f"no worker is ready yet; {n_asked} asked for, each loads the model first")
        else:
            needs = " and ".join(f"{need:g} {kind}s" for kind, need in self._needs.items() if need)
            self._book.progress.instead(f"waiting: no machine of the cluster has {needs}, which a worker needs")


def _why_lost(error: Exception) -> str:
    """Return the sentence that matters of Ray's message about a lost actor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if line.startswith("The actor is dead because")), lines[0])
    return line.split(" Some common causes")[0][:_WORDS]
