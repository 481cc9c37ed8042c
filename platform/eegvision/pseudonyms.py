"""Subjects' names stay with the data: what leaves a run's folder names them by pseudonyms.

Names that are codes already (`sub-01`, `S3`, `12`) stay as they are; any other becomes `p` and eight hexadecimal
digits of a keyed hash. The key lies in `EEGVISION_HOME/pseudonyms.key`, readable for its owner alone: whoever has it
and a name can tell the pseudonym, nobody else can, and guessing names does not help.

Pseudonyms are in the evaluations of a run, in MLflow's parameters and in every report made of these. The names are in
data sets, in `sweep.json`, in checkpoints (which must know their subjects), and in messages to whoever runs a job.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from eegvision.vocab import home

# A number of at most four digits (eight could be a date of birth), after at most the words for a person; and a fold of
# the blocks, which is where `data.held_out` names no person.
_CODE = re.compile(
    r"(sub|subj|subject|participant|patient|s|p|vp)?[-_ ]?\d{1,4}(/\d+ of [a-z-]+)?", re.ASCII | re.IGNORECASE
)
_PEOPLE = ("data.subjects", "data.held_out")


def pseudonym(subject: str) -> str:
    """Return what a subject is called outside the data set."""
    if not subject or _CODE.fullmatch(subject):
        return subject
    return "p" + hmac.new(_key(), subject.encode(), hashlib.sha256).hexdigest()[:8]


def segment(segment_id: str, subject: str) -> str:
    """Return the id of a subject's segment without its name, of which most sources make ids."""
    return segment_id.replace(subject, pseudonym(subject)) if subject else segment_id


def public(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return settings, nested or dotted, with the subjects in `data.subjects` and `data.held_out` by pseudonyms."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            found[name] = public(value, where)
        elif where in _PEOPLE or where.endswith(tuple(f".{end}" for end in _PEOPLE)):
            found[name] = pseudonym(value) if isinstance(value, str) else value and type(value)(map(pseudonym, value))
        else:
            found[name] = value
    return found


def has_names(values: Mapping[str, Any]) -> bool:
    """Say whether settings name subjects by more than codes, so that files holding them should stay in the run."""
    return public(values) != dict(values)


def _key() -> bytes:
    path = home() / "pseudonyms.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        own = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: its key is everybody's
            os.link(own, path)
        own.unlink()
    return path.read_bytes()
