"""Lines that say how far a job is, how fast and for how long still."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

Say = Callable[[str], None]

_RATE_S = 120.0  # the shortest time over which a rate is taken
_BAR = 20  # letters of the bar
_STILL = 8.0  # times the usual pause between lines while nothing is finished
_CALM_S = 120.0  # from when on the pause grows with the time that has passed


class Progress:
    """Says from time to time how far a job is, how fast and for how long still; the longer it takes, the more rarely.

    The rate is that of the last half of the time, at least of two minutes: workers may have joined meanwhile.

    Args:
        total: what there is to do, in `unit`s, about.
        before: what earlier calls did of it.
        say: prints a line.
    """

    def __init__(self, total: int, unit: str, say: Say, *, before: int = 0, every_s: float = 2.0) -> None:
        self._total, self._unit, self._say, self._every_s = total, unit, say, every_s
        self._began = self._said = time.monotonic()
        self._seen, self._n_said = deque([(self._began, before)]), -1
        self._is_on = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """Tell that preparations are over: the rate counts from the first call on."""
        if not self._is_on:
            self._is_on, self._seen = True, deque([(time.monotonic(), self._seen[-1][1])])

    def at(self, n_done: int, also: str = "") -> None:
        """Tell how much is done; prints when the last line is long enough ago."""
        now = time.monotonic()
        # What takes hours needs no line every two seconds, nor does a number that has not changed.
        pause_s = self._every_s * max(_STILL if n_done == self._n_said else 1.0, (now - self._began) / _CALM_S)
        if now - self._said < pause_s:
            return
        self._said, self._n_said = now, n_done
        self._seen.append((now, n_done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - max(_RATE_S, (now - self._began) / 2):
            self._seen.popleft()
        (then, n_then), share = self._seen[0], min(1.0, n_done / max(1, self._total))
        rate = (n_done - n_then) / max(now - then, 1e-9)
        bar = "#" * round(_BAR * share)
        line = f"[{clock(now - self._began)}] |{bar:-<{_BAR}}| {n_done:,} of {self._total:,} {self._unit}s{also}"
        if rate > 0:
            line += f", {f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} {self._unit}s/s"
            if n_done < self._total:
                line += f", about {_duration((self._total - n_done) / rate)} left"
        self._say(line)

    def instead(self, words: str) -> None:
        """Say something else while there is nothing to count; as often as `at` would."""
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            self._say(f"[{clock(now - self._began)}] {words}")


def clock(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours}:{minutes:02}:{int(seconds) % 60:02}" if hours else f"{minutes:02}:{int(seconds) % 60:02}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
