"""Joining a Ray cluster, or starting one, and what its processes say; Ray is imported when it is needed."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import eegvision
from eegvision.vocab import InputError


def connect() -> None:
    """Join the cluster a submitted job runs in, or start a private one on this machine.

    `RAY_ADDRESS` is set inside a submitted job (and by users who mean it). Without it Ray would join any cluster
    that happens to run on the host, possibly somebody else's, so a private one is asked for by name.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {
        "logging_level": "WARNING",
        "log_to_driver": os.environ.get("EEGVISION_WORKER_LOGS") == "1",
    }
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, runtime_env=_shipped_code(), **quiet)
    else:
        # Ray turns its token on by itself here and says so at length. Setting RAY_AUTH_MODE instead would come too
        # late: the value it had when ray was imported is cached in its C++ part.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel("ERROR")
        mask = os.umask(0o077)  # Ray writes its token file readable for everybody
        ray.init(address="local", include_dashboard=False, **quiet)
        os.umask(mask)


def _shipped_code() -> dict[str, Any] | None:
    """Ship the package with `ray job submit --working-dir .`, so that workers run the driver's code, not the image's.

    Such a job runs from a copy of the repository that Ray unpacked; there the package lies in `platform/`, which is
    not on a worker's path by itself.
    """
    package = Path(eegvision.__file__).parent
    return {"py_modules": [str(package)]} if "runtime_resources" in package.parts else None


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
