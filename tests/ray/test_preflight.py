"""eegvision.cluster with a real Ray: nodes are looked at where they are, and a private Ray leaves our signals alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eegvision import cluster, preflight, readiness
from eegvision.vocab import InputError


def test_nodes_that_fit_are_told_by_nothing_but_remarks(ray_local, session_home):
    assert ray_local.is_initialized()
    assert all("GiB are free" in said or "/dev/shm" in said for said in cluster.check_nodes())
    assert not list(session_home.glob(".preflight*"))


def test_a_node_with_other_code_is_refused_with_both_values(ray_local, session_home, monkeypatch):
    assert ray_local.is_initialized()
    assert session_home.exists()
    own = preflight.code()
    monkeypatch.setattr(preflight, "code", lambda: "0123456789ab")
    with pytest.raises(InputError, match=rf"node \S+ \(\S+\) runs eegvision {own}, the driver 0123456789ab; .*image"):
        cluster.check_nodes()


def test_a_node_that_does_not_see_the_drivers_file_says_so(ray_local, tmp_path):
    assert ray_local.is_initialized()
    nodes, silent = cluster.look_at_nodes(tmp_path / ".preflight-of-another-machine")
    assert silent == []
    assert ["another folder of that name" in node.storage for node in nodes] == [True]


def test_gpus_are_counted_where_ray_promises_some(session_home):
    with preflight.mark() as marked:
        assert marked.parent == session_home
        node = preflight.look(marked, "a", {"GPU": 1.0})
    assert node.gpus == torch.cuda.device_count()


def test_the_page_says_of_each_thing_how_it_is(ray_local, session_home, monkeypatch):
    assert ray_local.is_initialized()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = list(readiness.findings())
    assert [finding.what for finding in found if finding.verdict == "fault"] == []
    assert {finding.what for finding in found} >= {"cluster", "node", "versions", "storage", "GPUs", "MLflow", "spool"}
    assert str(session_home) in "\n".join(map(str, found))


_JOB = """
import logging, os, signal, sys
from dataclasses import dataclass
from pathlib import Path
import ray
from eegvision import cluster, telemetry
from eegvision.cli import run_job

def train():
    with telemetry.at(training="demo/a", pass_number=3):
        logging.getLogger("eegvision.train").warning("a bad step")

@dataclass(frozen=True, kw_only=True)
class Options:
    pass

def main(options):
    cluster.connect()
    ray.get(ray.remote(train).remote())
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    print("\\n".join(path.read_text() for path in (session / "logs").glob("worker-*.err")), flush=True)
    said = "".join(path.read_bytes().decode("latin-1") for path in (session / "logs").rglob("*") if path.is_file())
    print("token in Ray's logs:", os.environ["RAY_AUTH_TOKEN"] in said, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

sys.exit(run_job(Options, main))
"""


def test_a_job_with_ray_ends_by_sigterm_as_one_without_and_its_workers_log_json(tmp_path):
    env = os.environ | {
        "EEGVISION_HOME": str(tmp_path),
        "EEGVISION_LOG": "json",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "PYTHONPATH": str(Path(preflight.__file__).parent.parent),
    }
    env.pop("RAY_ADDRESS", None)
    ended = subprocess.run(
        [sys.executable, "-c", _JOB], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 75, ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("interrupted: what is finished is stored")
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"time"')]
    said = [line for line in lines if line["message"] == "a bad step"]
    assert [(line["training"], line["pass"], line["level"]) for line in said] == [("demo/a", 3, "WARNING")]
    assert said[0]["pid"] != os.getpid()
    assert "token in Ray's logs: False" in ended.stdout
    assert env["RAY_AUTH_TOKEN"] not in ended.stdout + ended.stderr
