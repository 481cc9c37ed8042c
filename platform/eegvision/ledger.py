"""The ledger: who opened which test set with which models, and when. Lines are added, never changed.

Each line holds a hash of itself and of the line before it, so that one that was altered or taken out shows.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eegvision.vocab import InputError, home


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One look at a test set.

    `test_sha256` stands for the pictures of the test side, so it is the same whoever splits alike. `models` holds
    run, trial, fingerprint and model_sha256 of each model that was scored. `number` counts lines from 1.
    """

    number: int
    time: str
    dataset: str
    test_sha256: str
    study: str
    models: tuple[dict[str, str], ...]
    purpose: str


def ledger_path() -> Path:
    """Return where the ledger of this home lies."""
    return home() / "ledger.jsonl"


def open_test(
    dataset: str, test_sha256: str, *, study: str, models: Sequence[dict[str, str]], purpose: str
) -> tuple[Opening, tuple[Opening, ...]]:
    """Write down that models are about to be scored on a test set; call before the first score is computed.

    Returns:
        This opening, and the earlier ones of the same test set. The same models of one study looked at again are no
        new opening: the earlier line is returned.
    Raises:
        InputError: a line was altered or is missing.
    """
    ledger_path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ledger_path().open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = file.read().splitlines()
        found = _checked(lines)
        earlier = tuple(opening for opening in found if opening.test_sha256 == test_sha256)
        hashes = {model["model_sha256"] for model in models}
        for opening in earlier:
            if opening.study == study and hashes <= {model["model_sha256"] for model in opening.models}:
                return opening, tuple(other for other in earlier if other.number < opening.number)
        opening = Opening(
            number=len(found) + 1,
            time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            dataset=dataset,
            test_sha256=test_sha256,
            study=study,
            models=tuple(models),
            purpose=purpose,
        )
        entry = vars(opening)
        file.write(json.dumps({**entry, "sha256": _sha256(lines[-1] if lines else "", entry)}) + "\n")
        file.flush()
    return opening, earlier


def openings(test_sha256: str | None = None) -> tuple[Opening, ...]:
    """Return every opening, or those of one test set, the oldest first.

    Raises:
        InputError: a line was altered or is missing.
    """
    if not ledger_path().exists():
        return ()
    found = _checked(ledger_path().read_text().splitlines())
    return tuple(opening for opening in found if test_sha256 in (None, opening.test_sha256))


def _checked(lines: Sequence[str]) -> list[Opening]:
    found, previous = [], ""
    for number, line in enumerate(lines, start=1):
        try:
            entry: dict[str, Any] = json.loads(line)
            is_whole = entry.pop("sha256") == _sha256(previous, entry) and entry["number"] == number
            entry["models"] = tuple(entry["models"])
            opening = Opening(**entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            is_whole, opening = False, None
        if not is_whole or opening is None:
            raise InputError(
                f"{ledger_path()}, line {number}, is not what was written there: the record of who opened the test set "
                "was altered; put back a copy from before, or move the file away and say so beside your scores"
            )
        found.append(opening)
        previous = line
    return found


def _sha256(previous: str, entry: dict[str, Any]) -> str:
    return hashlib.sha256((previous + json.dumps(entry)).encode()).hexdigest()
