"""Real MLflow servers on this machine, each in a session of its own, so that it can be killed whole."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path, port: int, *flags: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server on a database in the folder and return when it answers."""
    command = [
        *(str(Path(sys.executable).parent / "mlflow"), "server", f"--backend-store-uri=sqlite:///{folder}/server.db"),
        *(f"--artifacts-destination={folder}/artifacts", "--host=127.0.0.1", f"--port={port}", "--workers=1", *flags),
    ]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings | (env or {}), stdout=log, stderr=log, start_new_session=True
        )
    until = time.monotonic() + START_LIMIT_S
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    kill(server)
    raise AssertionError((folder / "server.log").read_text()[-3000:])


def kill(server: subprocess.Popen[bytes]) -> None:
    """End a server and its workers at once."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@contextmanager
def running(folder: Path, port: int, *flags: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server for the block; yields its address."""
    server = start(folder, port, *flags, env=env)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        kill(server)
