"""Could runs go here, and could strangers get in? Findings in a line each, with what to do where something is wrong."""

from __future__ import annotations

import base64
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from eegvision import cluster, preflight, spool, tracking
from eegvision.preflight import Node
from eegvision.vocab import InputError, home

Verdict = Literal["ok", "look", "fault"]

_ASK_S = 5.0
_SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: `ok`, worth a `look`, or a `fault` that would stop a run or let strangers in."""

    verdict: Verdict
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.verdict:<6} {self.what:<9} {self.said}"


def findings(*, alone: bool = False) -> Iterator[Finding]:
    """Yield what there is to say of cluster, token, nodes, storage, GPUs, MLflow and spools, as it is found.

    Args:
        alone: look at this machine without joining or starting Ray.
    """
    try:
        with preflight.mark() as marked:
            here = preflight.look(marked)
            nodes = [here]
            if not alone:
                try:
                    yield from _join()
                    nodes, silent = cluster.look_at_nodes(marked)
                    yield from (Finding(verdict="fault", what="node", said=said) for said in silent)
                    yield from (_node(node) for node in nodes)
                except InputError as error:
                    yield Finding(verdict="fault", what="cluster", said=str(error))
            yield from _together(here, nodes)
    except InputError as error:
        yield Finding(verdict="fault", what="storage", said=str(error))
    yield from _mlflow()
    yield from _spools()


def _join() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    cluster.connect()
    cpus, gpus = cluster.size()
    has = f"{cpus:g} CPUs, {gpus:g} GPUs"
    if address is None:
        yield Finding(verdict="ok", what="cluster", said=f"no RAY_ADDRESS: runs start a private Ray here ({has})")
        return
    yield Finding(verdict="ok", what="cluster", said=f"joined {address} ({has})")
    if os.environ.get(cluster.ALLOW_OPEN) == "1":
        said = f"{cluster.ALLOW_OPEN}=1, so nobody asked whether this cluster takes jobs from strangers"
        yield Finding(verdict="look", what="token", said=said)
    else:
        yield Finding(verdict="ok", what="token", said="the cluster refuses requests without its token")


def _node(node: Node) -> Finding:
    said = (
        f"{node.name}: {node.resources.get('CPU', 0):g} CPUs, {node.promised} GPUs, {node.memory_gib:.1f} GiB, "
        f"{node.store_gib:.1f} of them for data that processes share"
    )
    return Finding(verdict="ok", what="node", said=said)


def _together(here: Node, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Say whether the nodes can work together, by subject."""
    where = "" if len(nodes) == 1 else f" on all {len(nodes)} nodes"
    yield from (Finding(verdict="fault", what="node", said=said) for said in preflight.faults(here, nodes))
    yield from (Finding(verdict="look", what="node", said=said) for said in preflight.remarks(here, nodes))
    if all(node.versions == here.versions for node in nodes):
        said = ", ".join(f"{name} {version}" for name, version in here.versions.items())
        yield Finding(verdict="ok", what="versions", said=f"{said}{where}")
    if nodes and not any(node.storage for node in nodes):
        free_gib = min(node.free_gib for node in nodes)
        said = f"EEGVISION_HOME {home()} is written and read{where}; {free_gib:.0f} GiB are free"
        yield Finding(verdict="ok", what="storage", said=said)
    if not (promised := sum(node.promised for node in nodes)):
        yield Finding(verdict="look", what="GPUs", said="Ray has none; enough for simulated data and small models")
    elif all(node.gpus >= node.promised for node in nodes):
        yield Finding(verdict="ok", what="GPUs", said=f"torch can use all {promised}")


def _mlflow() -> Iterator[Finding]:
    """Ask MLflow as a run would, with the login and without."""
    uri = tracking.tracking_uri()
    shown = tracking.without_password(uri).rstrip("/")
    if not uri.startswith("http"):
        yield Finding(verdict="ok", what="MLflow", said=f"no MLFLOW_TRACKING_URI: runs are tracked in {shown}")
        return
    if _status(f"{shown}/health") is None:
        said = f"nothing answers at {shown}; runs go on and keep their events, and ship them once it is there"
        yield Finding(verdict="fault", what="MLflow", said=said)
        return
    as_user, as_stranger = _status(shown + _SEARCH, uri), _status(shown + _SEARCH)
    if as_user == 401:
        said = f"{shown} wants a login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one it knows"
        yield Finding(verdict="fault", what="MLflow", said=said)
    elif as_user == 403:
        said = f"{shown} does not take requests for this host name; add it to the server's --allowed-hosts"
        yield Finding(verdict="fault", what="MLflow", said=said)
    elif as_user != 200:
        said = f"{shown} answers a search for experiments with status {as_user}; is it MLflow 3?"
        yield Finding(verdict="fault", what="MLflow", said=said)
    elif as_stranger == 200:
        said = (
            f"{shown} answers, but asks for no login: whoever reaches it reads and changes runs (--app-name basic-auth)"
        )
        yield Finding(verdict="look", what="MLflow", said=said)
    else:
        yield Finding(verdict="ok", what="MLflow", said=f"{shown} answers, wants a login and takes this one")


def _status(url: str, login: str = "") -> int | None:
    """Return the status of a request, None where nothing answers; `login` is MLflow's address, for its user."""
    request = urllib.request.Request(url)
    if login:
        parts = urllib.parse.urlsplit(login)
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or urllib.parse.unquote(parts.username or "")
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or urllib.parse.unquote(parts.password or "")
        if user:
            given = base64.b64encode(f"{user}:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {given}")
    try:
        with urllib.request.urlopen(request, timeout=_ASK_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _spools() -> Iterator[Finding]:
    late = {}
    for folder in sorted((home() / "runs").glob("*/spool")):
        if n := spool.waiting(folder, tracking.target(folder.parent.name)):
            late[folder] = n
    for folder, n in late.items():
        said = f"{n} events of {folder.parent.name!r} wait for MLflow; its command again, or `make ui`, ships them"
        yield Finding(verdict="look", what="spool", said=said)
    if not late:
        yield Finding(verdict="ok", what="spool", said="no run has events that wait for MLflow")
