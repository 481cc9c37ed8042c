"""Joining a Ray cluster, or starting one, and whether its nodes fit together; Ray is imported when it is needed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import eegvision
from eegvision import preflight, telemetry
from eegvision.preflight import Node
from eegvision.vocab import InputError, TryAgainError, home

ALLOW_OPEN = "EEGVISION_ALLOW_OPEN"
_REACH_S = 5.0
_MACHINES_S = 600.0
_ASK_S = 3.0
_LOOK_S = 150.0


def connect() -> None:
    """Join the cluster a submitted job runs in, or start a private one on this machine.

    `RAY_ADDRESS` is set inside a submitted job (and by users who mean it). Without it Ray would join any cluster
    that happens to run on the host, possibly somebody else's, so a private one is asked for by name. A cluster that
    takes jobs without a token is refused, unless `EEGVISION_ALLOW_OPEN=1`.

    Raises:
        InputError: the cluster cannot be reached or joined, or is open to anybody; says what to set.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    telemetry.set_up_logs()
    quiet: dict[str, Any] = {
        "logging_level": "WARNING",
        "log_to_driver": os.environ.get("EEGVISION_WORKER_LOGS") == "1",
    }
    with _own_sigterm():
        if address := os.environ.get("RAY_ADDRESS"):
            _join(address, quiet)
        else:
            _start(quiet)


def enter(say: Callable[[str], Any]) -> None:
    """Join or start a cluster; wait for machines of a joined one, and look at each of them before work goes there.

    Raises:
        InputError: as `connect` and `check_nodes` do.
        TryAgainError: no machine that computes has joined for ten minutes.
    """
    connect()
    if "RAY_ADDRESS" in os.environ:
        _await_machines(say)
        for remark in check_nodes():
            say(f"note: {remark}")


def _await_machines(say: Callable[[str], Any]) -> None:
    """Wait until there is something to compute with: on Kubernetes a head without CPUs is up before its workers."""
    if any(size()):
        return
    say("waiting for machines: the cluster has no CPUs and no GPUs yet")
    began = time.monotonic()
    while not any(size()):
        if time.monotonic() - began > _MACHINES_S:
            raise TryAgainError(
                f"no machine with CPUs or GPUs has joined the cluster for {_MACHINES_S / 60:.0f} minutes; look at why "
                "its workers do not start (k8s/README.md), then give the same command again"
            )
        time.sleep(1.0)


def _start(quiet: dict[str, Any]) -> None:
    import ray

    # Ray turns its token on by itself here and says so at length. Setting RAY_AUTH_MODE instead would come too
    # late: the value it had when ray was imported is cached in its C++ part.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel("ERROR")
    mask = os.umask(0o077)  # Ray writes its token file readable for everybody
    try:
        ray.init(address="local", include_dashboard=False, runtime_env=_log_set_up() or None, **quiet)
    finally:
        os.umask(mask)


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    _refuse_unreachable(address)
    # A submitted job may bring a runtime environment of its own; ours is added to it.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    try:
        joined: Any = ray.init(address=address, runtime_env=_runtime_env(), **quiet)
    except AuthenticationError as error:
        raise InputError(f"the cluster at {address} needs a token, and there is none here; {_GIVE_TOKEN}") from error
    except ConnectionError as error:
        raise InputError(
            f"{address} answers, but does not let this job in: its token is missing here or another one, or this is "
            f"not a Ray head; {_GIVE_TOKEN}"
        ) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        said = " ".join(str(error).split())
        raise InputError(f"the cluster at {address} cannot be joined: {said}") from error
    dashboard = joined.address_info.get("webui_url") or ""
    if os.environ.get(ALLOW_OPEN) != "1" and is_open(dashboard):
        ray.shutdown()
        raise InputError(
            f"the cluster at {address} takes jobs from anybody ({dashboard or 'no token'}), and a job can do "
            "whatever you can; start it with RAY_AUTH_MODE=token (`python jobs/local.py -- ...` does, and so do the "
            f"manifests in k8s/), or set {ALLOW_OPEN}=1 where nobody else reaches it"
        )


_GIVE_TOKEN = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds the token of this cluster (readable for you "
    "alone), or run the job with `ray job submit`, where the cluster gives it the token"
)


def _refuse_unreachable(address: str) -> None:
    """Refuse what `ray.init` would refuse in other words, or only after a long wait."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise InputError(
            f"RAY_ADDRESS is {address!r}; a job joins a cluster at HOST:PORT of its head (port 6379 by default). "
            "An http:// address is for submitting: `ray job submit --address ... -- python jobs/sweep.py`, or unset "
            "RAY_ADDRESS to work on this machine alone"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise InputError(
            f"no cluster answers at RAY_ADDRESS={address} ({error.strerror or error}); see whether its head runs and "
            "is reached from here, or unset RAY_ADDRESS to work on this machine alone"
        ) from error


def is_open(dashboard: str) -> bool:
    """Say whether a cluster takes requests without a token.

    Its dashboard is asked. Where none answers, it is open unless there is a token that it can have demanded.

    Args:
        dashboard: its HOST:PORT; empty where the cluster has none.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer in its place
    try:
        with direct.open(f"http://{dashboard}/api/version", timeout=_ASK_S):
            return True
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return error.code not in (401, 403)
    except (OSError, ValueError):
        pass
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return not named and not Path("~/.ray/auth_token").expanduser().exists()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray's exits at once, where ours stores what is there and exits 75."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _runtime_env() -> dict[str, Any]:
    """Return what workers on other machines need to be told: where runs lie, and which code to run.

    With `ray job submit --working-dir .` the package is shipped, so that workers run the driver's code, not the
    image's. Such a job runs from a copy of the repository that Ray unpacked; there the package lies in `platform/`,
    which is not on a worker's path by itself.
    """
    package = Path(eegvision.__file__).parent
    shipped = {"py_modules": [str(package)]} if "runtime_resources" in package.parts else {}
    set_up = _log_set_up()
    env_vars = {"EEGVISION_HOME": str(home())} | set_up.pop("env_vars", {})
    return {"env_vars": env_vars, **set_up, **shipped}


def _log_set_up() -> dict[str, Any]:
    """Return what makes workers write their log as this process does."""
    if not telemetry.is_wanted():
        return {}
    return {"env_vars": {"EEGVISION_LOG": "json"}, "worker_process_setup_hook": "eegvision.telemetry.set_up_logs"}


def check_nodes() -> list[str]:
    """Look at every node before work goes there; return what deserves a look, in a sentence each.

    Nodes that join later are not looked at.

    Raises:
        InputError: a node runs other code or versions than this process, does not share EEGVISION_HOME, or has
            fewer usable GPUs than Ray promises; names each node with both values and the remedy.
    """
    with preflight.mark() as marked:
        here = preflight.look(marked)
        nodes, silent = look_at_nodes(marked)
    if found := silent + preflight.faults(here, nodes):
        raise InputError(f"the cluster's nodes do not fit together: {'; and '.join(found)}")
    return preflight.remarks(here, nodes)


def look_at_nodes(marked: Path) -> tuple[list[Node], list[str]]:
    """Return what every living node says of itself, and why others said nothing.

    Args:
        marked: the file that `preflight.mark` left.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(preflight.look)
    asked: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            options = {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": where}
            asked[look.options(**options).remote(marked, name, node["Resources"])] = name
    answered, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)
    nodes, silent = [], []
    for answer in answered:
        try:
            nodes.append(ray.get(answer))
        except RayError as error:
            said = str(cause(error)).strip().splitlines()[-1]
            silent.append(f"node {asked[answer]} cannot run a task ({said}); start all nodes from one image")
    for answer in waiting:
        ray.cancel(answer, force=True)
        silent.append(f"node {asked[answer]} did not answer within {_LOOK_S:.0f} s; take it out of the cluster")
    return sorted(nodes, key=lambda node: node.name), silent


def size() -> tuple[float, float]:
    """Return the cluster's CPUs and GPUs."""
    import ray

    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def is_connected() -> bool:
    """Say whether this process is connected to Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def cause(error: Exception) -> Exception:
    """Return the InputError that a Ray task or actor raised, or its error itself."""
    seen: BaseException | None = error
    while seen is not None and type(seen) is not InputError:
        seen = getattr(seen, "cause", None) or seen.__cause__
    return seen if isinstance(seen, Exception) else error
