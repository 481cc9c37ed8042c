"""A sweep from rendered manifests, in pods that are lost on the way."""

import pytest

from cluster import sweeps
from cluster.hosts import missing, until
from cluster.lab import Lab, RayCluster, lab, postgres_folder
from eegvision import history

# Hosts are network namespaces, which only root on Linux may make; nothing else shows what a cut network does.
if why := missing():
    pytest.skip(f"pods cannot be simulated here: this {why}", allow_module_level=True)

TRIALS, PASSES = 4, 30


@pytest.fixture(scope="module")
def alive(tmp_path_factory):
    """A lab with tracking, where nothing has been submitted yet."""
    folder = tmp_path_factory.mktemp("lab")
    objects = sweeps.overlay(folder / "overlay", trials=TRIALS, passes=PASSES)
    with lab(objects, folder) as made:
        # The manifests name PostgreSQL and nothing else; with another store it would not be they that are tested.
        if postgres_folder() is None:
            pytest.skip("needs PostgreSQL's server (Debian: postgresql), as MLflow's store is one")
        made.start_postgres()
        made.start_mlflow()
        sweeps.furnish(made, trials=TRIALS, passes=PASSES)
        yield made


def wait_for_passes(alive: Lab, cluster: RayCluster, count: int) -> None:
    def there() -> bool:
        assert cluster.submitters[-1][1].poll() is None, cluster.said()
        return sweeps.passes_made(alive) >= count

    until(f"{count} passes", there, timeout_s=240)


def test_a_sweep_outlives_its_submitter_a_worker_and_its_head(alive):
    cluster = alive.start_job(sweeps.NAME)
    wait_for_passes(alive, cluster, 4)

    # Who has no token, or another one, gets nothing of a running cluster; MLflow asks for a login.
    worker = cluster.workers[1]
    head = f"http://{cluster.head.name}:8265"
    for path in ("/api/jobs/", "/api/version", "/nodes"):
        assert alive.curl(worker, head + path)[0] == 401, path
        assert alive.curl(worker, head + path, "-H", "Authorization: Bearer no")[0] == 403, path
    assert alive.curl(worker, "http://mlflow:5000/")[0] == 401

    # The submitter goes: the job does not, and the next submitter follows it.
    cluster.submitters[-1][0].kill()
    alive.resubmit(sweeps.NAME, cluster)
    before = sweeps.passes_made(alive)
    wait_for_passes(alive, cluster, before + 2)
    assert len(alive.ray(cluster, "/api/jobs/")) == 1

    # A worker is cut off: noticed in 10 s, and its trial goes on elsewhere.
    assert alive.nodes_alive(cluster) == 3
    with cluster.workers[1].standing_still("ray::ImplicitFunc"):
        cluster.workers[0].cut()
        took_s = until("the loss is noticed", lambda: alive.nodes_alive(cluster) == 2, timeout_s=30)
        assert took_s <= 10
        alive.replace_worker(sweeps.NAME, cluster)
        until("the new worker joins", lambda: alive.nodes_alive(cluster) == 3, timeout_s=120)
        cluster.workers[0].heal()  # it may not write any more, and does not come back
    before = sweeps.passes_made(alive)
    wait_for_passes(alive, cluster, before + 6)
    assert alive.nodes_alive(cluster) == 3

    # The head goes, and the driver with it: a new cluster with the same entrypoint ends the sweep.
    cluster.head.kill()
    until("the submitter gives up", lambda: cluster.submitters[-1][1].poll() is not None, timeout_s=60)
    assert cluster.submitters[-1][1].returncode != 0
    cluster.kill()
    before = sweeps.passes_made(alive)
    assert before < TRIALS * PASSES, "the head was lost too late to prove anything"
    cluster = alive.start_job(sweeps.NAME)
    assert cluster.submitters[-1][1].wait(300) == 0, cluster.said()
    assert "rank  trial  status" in cluster.said()
    assert_whole(alive)


def assert_whole(alive: Lab) -> None:
    folder = sweeps.run_folder(alive)
    assert history.check(folder) == []
    log = history.read(folder)
    assert [event["do"] for event in log if event["do"] in ("begin", "resume", "finished")] == [
        "begin", "resume", "finished",
    ]  # fmt: skip
    reasons = [event["reason"] for event in log if event["do"] == "lost"]
    assert any(reason.startswith("node") for reason in reasons), reasons
    made = [(event["id"], event["pass"]) for event in log if event["do"] == "pass"]
    assert len(set(made)) == TRIALS * PASSES
    # At most one pass of each trial was made twice for each loss.
    assert len(made) - len(set(made)) <= len(reasons) + TRIALS

    # All of it is in MLflow, once: the sweep and its trials, with every pass.
    host = alive.net.hosts[0]
    experiment = alive.mlflow(host, "experiments/search", {"max_results": 10, "filter": f"name = '{sweeps.NAME}'"})
    (number,) = [one["experiment_id"] for one in experiment["experiments"]]
    runs = alive.mlflow(host, "runs/search", {"experiment_ids": [number], "max_results": 100})["runs"]
    assert len(runs) == 1 + TRIALS
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}

    # No secret went where it does not belong.
    written = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    values = [value for secret in alive.secrets.values() for value in secret.values() if len(value) == 32]
    for path in (*written, *alive.folder.glob("hosts/*submitter*/*.log"), *alive.folder.glob("hosts/*head*/*.log")):
        text = path.read_bytes()
        assert not [value for value in values if value.encode() in text], path
