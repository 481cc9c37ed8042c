"""Many small trainings on one device: each in a thread of its own, their steps taken together.

A small network leaves a GPU waiting for Python, and trainings of one family (`stacked.family`) differ in numbers alone.
Each of them is `train.fit` as always, with its own batches, validation, checkpoints and reports; only `train_step` is
replaced by `Place.step`, which waits until everybody of the family has asked for a step, and takes them all at once.
So a training is what it would be alone, up to rounding, whoever is beside it.

A pass begins with everybody who is there, and who comes later waits for the next one, so all of a family validate and
report at the same time and nobody waits for them. Who leaves (stopped early, finished, diverged) makes room. On a CPU
only those who see the same rows are stacked: it gains from what is shared, not from fewer and larger operations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from eegvision import parts
from eegvision.config import RunConfig
from eegvision.resume import TrainState
from eegvision.stacked import Request, Stack, family
from eegvision.train import Step, train_step

if TYPE_CHECKING:  # the loop runs without Ray, which `stream` imports
    from eegvision.stream import Batch


@dataclass(kw_only=True, eq=False)
class _Member:
    """A training that takes part."""

    family: tuple[Any, ...] | None
    is_away: bool = False
    """It waits for an answer to its report, which may take long: nobody waits for it."""
    is_in: bool = False
    """It takes part in the pass under way."""
    asks: Request | None = None
    asked_s: float = 0.0
    answer: Step | Exception | None = None


@dataclass(kw_only=True, eq=False)
class _Family:
    """The trainings that can be stacked with each other."""

    members: list[_Member] = field(default_factory=list)
    has_changed: bool = True
    """Whether somebody came or left since the last pass began, so that somebody else may be about to come."""
    stacks: dict[tuple[_Member, ...], Stack] = field(default_factory=dict)


class Together:
    """The meeting place of the trainings on one device."""

    def __init__(self, places: int, *, patience_s: float = 1.0) -> None:
        """Expect up to `places` trainings of a family, and wait for them up to `patience_s` before a pass."""
        self.one_at_a_time = threading.RLock()
        """Held by whoever computes, and by whoever draws from torch's own generator, as when a model is built."""
        self.sizes: list[int] = []
        """How many trainings each stack of the latest round had."""
        self._places, self._patience_s = places, patience_s
        self._changed = threading.Condition()
        self._families: dict[tuple[Any, ...], _Family] = {}

    @contextmanager
    def place(self, config: RunConfig) -> Iterator[Place]:
        """Take part with a training of this configuration while the block runs."""
        kind = family(config)
        member = _Member(family=kind)
        if kind is None:
            yield Place(self, member)
            return
        with self._changed:
            own = self._families.setdefault(kind, _Family())
            own.members.append(member)
            own.has_changed = True
        try:
            yield Place(self, member)
        finally:
            with self._changed:
                self._let_go(member)

    def _let_go(self, member: _Member) -> None:
        if member.family is None:
            return
        own, member.family = self._families[member.family], None
        own.members.remove(member)
        own.has_changed = True
        own.stacks = {crew: stack for crew, stack in own.stacks.items() if member not in crew}
        self._changed.notify_all()

    def _step(self, member: _Member, request: Request) -> Step:
        with self._changed:
            if request.state.parts > 1:  # its batches were too large for the GPU; so would be those of several
                self._let_go(member)
            is_late = request.index > 0 and not member.is_in  # it goes on within a pass that others have not begun
            if member.family is None or is_late:
                own = None
            else:
                own = self._families[member.family]
                member.asks, member.asked_s, member.answer = request, time.monotonic(), None
                member.is_in = request.index > 0  # else it waits for a pass to begin
                self._changed.notify_all()
                while member.answer is None:
                    if crew := self._due(own):
                        self._take_round(own, crew)
                    else:
                        self._changed.wait(self._patience_s / 10)
        if own is None:
            with self.one_at_a_time:
                return train_step(
                    request.config,
                    request.state,
                    request.batch,
                    number=request.number,
                    index=request.index,
                    n_steps=request.n_steps,
                    wish=request.wish,
                )
        if isinstance(member.answer, Exception):
            raise member.answer
        assert member.answer is not None
        return member.answer

    def _due(self, own: _Family) -> list[_Member]:
        """Return who takes a step now: within a pass all that began it, at its end all who are there."""
        crew = [member for member in own.members if member.is_in]
        if crew:
            return crew if all(member.asks for member in crew) else []
        asking = [member for member in own.members if member.asks]
        absent = [member for member in own.members if not member.asks]
        if any(not member.is_away for member in absent) or not asking:
            return []
        is_complete = not absent and (len(asking) >= self._places or not own.has_changed)
        is_late = time.monotonic() > max(member.asked_s for member in asking) + self._patience_s
        if not (is_complete or is_late):
            return []
        own.has_changed = False
        return asking

    def _take_round(self, own: _Family, crew: list[_Member]) -> None:
        """Take a step for each of the crew, who all wait; the lock is free meanwhile."""
        groups: dict[Any, list[tuple[_Member, Request]]] = {}
        for member in crew:
            request, member.asks, member.is_in = member.asks, None, True
            assert request is not None
            groups.setdefault(_seen_alike(request), []).append((member, request))
        known, used = own.stacks, {}
        answers: dict[_Member, Step | Exception] = {}
        self._changed.release()
        try:
            with self.one_at_a_time:
                for group in groups.values():
                    members, requests = zip(*group, strict=True)
                    try:
                        used[members] = known.get(members) or Stack(requests)
                        answers |= dict(zip(members, used[members].step(requests), strict=True))
                    except Exception as error:
                        answers |= dict.fromkeys(members, _said(error, len(members)))
        finally:
            self._changed.acquire()
            for member in crew:
                member.answer = answers[member]
            own.stacks, self.sizes = used, [len(members) for members in used]
            self._changed.notify_all()


class Place:
    """One training's part in the meeting."""

    def __init__(self, room: Together, member: _Member) -> None:
        self._room, self._member = room, member

    def step(
        self, config: RunConfig, state: TrainState, batch: Batch, *, number: int, index: int, n_steps: int, wish: int
    ) -> Step:
        """Take a step as `train.train_step` does, with the others of the family.

        Raises:
            GpuOutOfMemoryError: the GPU is too small for so many trainings at once.
        """
        request = Request(
            config=config, state=state, batch=batch, number=number, index=index, n_steps=n_steps, wish=wish
        )
        return self._room._step(self._member, request)

    def away(self, report: Callable[[], None]) -> None:
        """Report, while nobody waits for this training."""
        with self._room._changed:
            self._member.is_away, self._member.is_in = True, False
            self._room._changed.notify_all()
        try:
            report()
        finally:
            self._member.is_away = False


def _seen_alike(request: Request) -> tuple[int, int] | None:
    """Return what requests of a family must have in common to be stacked on this device."""
    return (request.config.seed, request.number) if request.batch.eeg_BCT.device.type == "cpu" else None


def _said(error: Exception, count: int) -> Exception:
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return parts.GpuOutOfMemoryError(
        f"the GPU's memory does not hold a batch of {count} trainings at once; lower --together or train.batch_size. "
        f"The GPU said: {parts.first_line(error)}"
    )
