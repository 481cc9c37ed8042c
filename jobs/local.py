"""Start a private Ray head on this machine, submit one job to it as one would to a cluster, stop the head.

    python jobs/local.py -- python jobs/sweep.py

The head takes free ports and a token of its own, so it meets no other cluster and no stranger can use it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

START_LIMIT_S = 90.0


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start_head(folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    """Start the head in a session of its own, so that all of it can be ended without touching another Ray."""
    gcs, dashboard, client, agent = ports
    command = [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={gcs}", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        f"--ray-client-server-port={client}",
    ]
    with (folder / "head.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def wait_until_up(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return when the head takes jobs; leave with its log when it ends or stays silent."""
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until and head.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/gcs_healthz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"error: Ray's head did not start; its log says:\n{log.read_text()[-3000:]}")


def stop(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything in its session; the job is over by now, so nothing in it is worth waiting for."""
    head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(5)
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == head.pid:
                process.kill()
    head.wait()


def exit_code(address: str, submission: str, fallback: int) -> int:
    """Return the job's own exit code; `ray job submit` itself only says whether it succeeded."""
    from ray.job_submission import JobSubmissionClient

    info = JobSubmissionClient(address).get_job_info(submission)
    return fallback if info is None or info.driver_exit_code is None else info.driver_exit_code


def main(command: list[str]) -> int:
    """Run one job on a head of its own and return the job's exit code."""
    folder = Path(tempfile.mkdtemp(prefix="eegv"))  # short: Unix sockets below it allow about 100 characters
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    binaries = str(Path(sys.executable).parent)
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        PATH=f"{binaries}{os.pathsep}{os.environ['PATH']}",
    )
    os.environ.pop("RAY_ADDRESS", None)
    ports = free_ports(4)
    address = f"http://127.0.0.1:{ports[1]}"
    submission = f"local-{secrets.token_hex(4)}"
    print(f"starting a private Ray head ({address}) ...", flush=True)
    head = start_head(folder, ports)
    try:
        wait_until_up(head, address, folder / "head.log")
        submit = [
            "ray",
            "job",
            "submit",
            f"--address={address}",
            f"--submission-id={submission}",
            "--log-color=false",
            "--",
            *command,
        ]
        print(f"ray job submit -- {' '.join(command)}", flush=True)
        done = subprocess.run(submit, check=False)
        return exit_code(address, submission, done.returncode)
    except KeyboardInterrupt:
        return 75
    finally:
        stop(head)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    words = sys.argv[1:]
    if words[:1] != ["--"] or len(words) < 2:
        sys.exit(__doc__)
    sys.exit(main(words[1:]))
