"""What one machine brings to a run, and whether several fit together; looked at before work is spread over them.

Nothing here asks Ray: `cluster.check_nodes` calls `look` on every node, and `jobs/cluster_check.py` on this one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import eegvision
from eegvision.vocab import InputError, home

CLOCK_TOLERANCE_S = 60.0
ROOMY_GIB = 5.0  # below, a sweep's checkpoints may not fit
SMALLEST_STORE = 0.1  # of a node's memory; Ray itself takes 0.3
_GPU_LIMIT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine: what it runs, what it sees of the storage, how many GPUs torch can use there.

    `storage` says why the storage cannot be used, if it cannot; `free_gib` is -1 then. `resources` are what Ray deals
    out there, nothing where Ray was not asked. `gpus` is only counted where Ray promised some (importing torch takes
    seconds), else 0. `shm_gib` is the size of /dev/shm, where Ray keeps shared data; `clock_s` its wall clock.
    """

    name: str
    versions: dict[str, str]
    storage: str
    free_gib: float
    resources: dict[str, float]
    gpus: int
    shm_gib: float
    clock_s: float

    @property
    def promised(self) -> int:
        """GPUs Ray gives work to here."""
        return int(self.resources.get("GPU", 0))

    @property
    def store_gib(self) -> float:
        """Memory for data that all processes of the node share."""
        return self.resources.get("object_store_memory", 0.0) / 2**30

    @property
    def memory_gib(self) -> float:
        """Memory for processes and shared data together."""
        return self.resources.get("memory", 0.0) / 2**30 + self.store_gib


@cache
def code() -> str:
    """Return 12 hexadecimal digits of a hash over the package's source files: the code that really runs here."""
    root = Path(eegvision.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Return the versions that must be the same wherever parts of one run are computed."""
    packages = {name: importlib.metadata.version(name).partition("+")[0] for name in ("ray", "torch", "numpy")}
    return {"eegvision": code(), "python": platform.python_version(), **packages}


@contextmanager
def mark() -> Iterator[Path]:
    """Leave a file with a random word under `EEGVISION_HOME` while the block runs; every node should read it there.

    Raises:
        InputError: this machine cannot write there.
    """
    path = home() / f".preflight-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(path.name)
    except OSError as error:
        raise InputError(
            f"EEGVISION_HOME is {home()}, and {socket.gethostname()} cannot write there ({error.strerror}); "
            "set it to a folder of yours"
        ) from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def look(marked: Path, name: str = "", resources: Mapping[str, float] | None = None) -> Node:
    """Look at the machine this is called on.

    Args:
        marked: the file that `mark` left.
        name: what the machine is called in messages; by default its host name.
        resources: what Ray deals out here.
    """
    storage = _fault_of_storage(marked)
    resources = dict(resources or {})
    shared = Path("/dev/shm")
    return Node(
        name=name or socket.gethostname(),
        versions=versions(),
        storage=storage,
        free_gib=-1.0 if storage else shutil.disk_usage(marked.parent).free / 2**30,
        resources=resources,
        gpus=usable_gpus() if resources.get("GPU") else 0,
        shm_gib=shutil.disk_usage(shared).total / 2**30 if shared.exists() else 0.0,
        clock_s=time.time(),
    )


def _fault_of_storage(marked: Path) -> str:
    """Say why a run could not be stored beside the mark, or nothing."""
    if not marked.parent.is_dir():
        return f"there is no {marked.parent}"
    try:
        if marked.read_text() != marked.name:
            return f"{marked} holds something else than was written"
    except OSError:
        return f"what the driver wrote to {marked.parent} is not there, so it is another folder of that name"
    own = marked.with_name(f"{marked.name}-{os.getpid()}-{socket.gethostname()}")
    try:
        own.write_text(own.name)
        own.unlink()
    except OSError as error:
        return f"{marked.parent} cannot be written ({error.strerror})"
    return ""


def usable_gpus() -> int:
    """Count the GPUs torch can use on this machine, whichever of them Ray hides from this process."""
    hidden = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    seen = {name: value for name, value in os.environ.items() if name not in hidden}
    count = (
        "import torch; print(sum(torch.ones(1, device=f'cuda:{i}').item() for i in range(torch.cuda.device_count())))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", count],
            env=seen, capture_output=True, text=True, timeout=_GPU_LIMIT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(float(done.stdout))


def faults(here: Node, nodes: Sequence[Node]) -> list[str]:
    """Say in a sentence each why nodes cannot work with the driver's machine, with both values and the remedy."""
    found = []
    for node in nodes:
        for what, driver in here.versions.items():
            if (there := node.versions[what]) != driver:
                found.append(f"node {node.name} runs {what} {there}, the driver {driver}; {_remedy(what)}")
        if node.storage:
            found.append(
                f"node {node.name}: {node.storage}; EEGVISION_HOME must be one shared folder that every node mounts "
                "at the same path and may write"
            )
        if node.gpus < node.promised:
            found.append(
                f"node {node.name}: Ray promises {node.promised} GPUs, torch can use {node.gpus}; see nvidia-smi "
                "there, install the driver that torch's CUDA needs, or start the node with the --num-gpus it has"
            )
    return found


def remarks(here: Node, nodes: Sequence[Node]) -> list[str]:
    """Say what deserves a look but stops nothing: little space or memory, clocks that differ."""
    found = []
    for node in nodes:
        if 0 <= node.free_gib < ROOMY_GIB:
            found.append(f"node {node.name}: {node.free_gib:.1f} GiB are free in EEGVISION_HOME; checkpoints need room")
        if node.store_gib < SMALLEST_STORE * node.memory_gib:
            found.append(
                f"node {node.name}: {node.store_gib:.1f} of {node.memory_gib:.1f} GiB are for data that processes "
                "share; what does not fit goes to disk (start the node with a larger --object-store-memory)"
            )
        elif 0 < node.shm_gib < node.store_gib:
            found.append(
                f"node {node.name}: /dev/shm holds {node.shm_gib:.1f} GiB, less than the {node.store_gib:.1f} GiB for "
                "data that processes share, which then lie on disk (mount a larger /dev/shm)"
            )
        if (apart_s := abs(node.clock_s - here.clock_s)) > CLOCK_TOLERANCE_S:
            found.append(
                f"node {node.name}: its clock differs from the driver's by {apart_s:.0f} s; times in logs and in "
                "MLflow will not line up (start chrony or ntpd there)"
            )
    return found


def _remedy(what: str) -> str:
    if what == "eegvision":
        return (
            "start all nodes from one image, or submit with `ray job submit --working-dir .`, which sends the "
            "driver's code to the nodes"
        )
    return "start all nodes from one image (requirements.lock names the versions)"
