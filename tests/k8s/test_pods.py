"""k8s.pods: commands, environment and mounts of the pods that the operator makes, against its documented rules."""

import subprocess

import pytest

from k8s.pods import expand, pods, quantity, ray_start, workload
from k8s.rendered import overlay
from k8s.rules import example_secrets
from k8s.schemas import problems

SECRETS = {
    "ray-token": {"auth_token": "T0KEN"},
    "mlflow-client": {"MLFLOW_TRACKING_USERNAME": "ray", "MLFLOW_TRACKING_PASSWORD": "PASSW0RD"},
}
HEAD_SERVICE = "sweep-abcde-head-svc.eegvision.svc.cluster.local"


def made(name, overlay_name="lab", role=None):
    found = pods(overlay(overlay_name), name, secrets=SECRETS, cluster="sweep-abcde", submission="sweep-x")
    return [pod for pod in found if role in (None, pod.role)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("2", 2), (2, 2), ("1.5", 1.5), ("8Gi", 8 * 2**30), ("1k", 1000), ("1Ki", 1024), ("3M", 3e6)],
)
def test_quantities_by_hand(text, value):
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["8GB", "", "-1", "1e", "Gi"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)


def test_parameters_are_sorted_and_booleans_are_flags():
    params = {"num-cpus": "0", "no-monitor": "true", "disable-x": "false", "include-dashboard": "false"}
    assert ray_start("head", params, {}) == (
        "ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 "
        "--include-dashboard=false --metrics-export-port=8080 --no-monitor --num-cpus=0"
    )


def test_a_worker_takes_its_size_from_its_limits_rounded_up():
    resources = {"limits": {"cpu": "2500m", "memory": "1Gi", "nvidia.com/gpu": "2"}, "requests": {"cpu": "1"}}
    assert ray_start("worker", {}, resources, "head:6379") == (
        "ray start --address=head:6379 --block --dashboard-agent-listen-port=52365 --memory=1073741824 "
        "--metrics-export-port=8080 --num-cpus=3 --num-gpus=2"
    )
    assert "--num-cpus=1" in ray_start("worker", {}, {"requests": {"cpu": "1"}}, "head:6379")
    assert "--num-cpus=7" in ray_start("worker", {"num-cpus": "7"}, resources, "head:6379")


@pytest.mark.parametrize(
    ("text", "filled"), [("$(A)b", "1b"), ("$(C)", "$(C)"), ("$$(A)", "$(A)"), ("$A ${A:-2}", "$A ${A:-2}")]
)
def test_variables_are_filled_in_as_the_kubelet_does(text, filled):
    assert expand(text, {"A": "1"}) == filled


def test_a_job_has_a_head_a_pod_per_replica_and_a_submitter():
    assert [(pod.role, pod.name) for pod in made("sweep")] == [
        ("head", "sweep-abcde-head"),
        ("worker", "sweep-abcde-gpu-worker-0"),
        ("worker", "sweep-abcde-gpu-worker-1"),
        ("submitter", "sweep-submitter"),
    ]
    assert [pod.role for pod in made("interactive")] == ["head", "worker", "worker"]


def test_the_head_runs_the_driver_only():
    (head,) = made("sweep", role="head")
    assert head.command.startswith("ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block ")
    assert "--num-cpus=0" in head.command
    assert "--num-gpus" not in head.command
    assert head.env["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert head.env["RAY_NODE_TYPE_NAME"] == "headgroup"
    assert head.init == ()


def test_a_worker_waits_for_the_head_and_finds_it_by_its_service():
    worker, _ = made("sweep", role="worker")
    assert f"--address={HEAD_SERVICE}:6379" in worker.command
    assert "--num-cpus=8 --num-gpus=1" in worker.command
    assert worker.env["FQ_RAY_IP"] == HEAD_SERVICE
    assert worker.env["RAY_CLUSTER_NAME"] == "sweep-abcde"
    (wait,) = worker.init
    assert f"ray health-check --address {HEAD_SERVICE}:6379" in wait.command
    assert wait.limits == {"cpu": "200m", "memory": "256Mi"}
    assert wait.mounts == worker.mounts[:3], "those of the manifest; /dev/shm is added later"
    assert "MLFLOW_TRACKING_PASSWORD" not in wait.env, "the operator copies env, not envFrom"


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_pods_share_a_volume_and_have_folders_to_write_to(role):
    for pod in made("sweep", role=role):
        paths = {mount.path: mount for mount in pod.mounts}
        assert paths["/mnt/shared"].claim == "eeg-shared"
        assert pod.env["EEGVISION_HOME"].startswith("/mnt/shared/")
        assert paths["/dev/shm"].source == {"emptyDir": {"medium": "Memory"}}
        assert paths[pod.env["HOME"]].claim is None
        assert pod.labels["ray.io/is-ray-node"] == "yes"


def test_the_submitter_looks_for_the_job_before_it_submits():
    (submitter,) = made("sweep", role="submitter")
    text = submitter.command
    address = f"http://{HEAD_SERVICE}:8265"
    assert f"if ! ray job status --address {address} sweep-x >/dev/null 2>&1 ; then ray job submit" in text
    assert "--no-wait --submission-id sweep-x -- python jobs/sweep.py --name sweep " in text
    assert text.endswith(f"fi ; ray job logs --address {address} --follow sweep-x")
    assert text.index("/api/gcs_healthz") < text.index("ray job status")
    assert submitter.labels["ray.io/originated-from-crd"] == "RayJob"
    assert submitter.env["RAY_JOB_SUBMISSION_ID"] == "sweep-x"


def test_an_autoscaler_joins_the_head():
    (head,) = made("sweep", "autoscale", "head")
    scaler = head.container("autoscaler")
    assert scaler.command == "ray kuberay-autoscaler --cluster-name sweep-abcde --cluster-namespace eegvision"
    assert scaler.env["RAY_AUTH_TOKEN"] == "T0KEN"
    assert "--no-monitor" in head.command
    assert head.manifest["spec"]["restartPolicy"] == "Never"
    assert head.manifest["spec"]["containers"][1]["securityContext"]["allowPrivilegeEscalation"] is False
    assert "/tmp/ray" in {mount.path for mount in scaler.mounts}


@pytest.mark.parametrize("overlay_name", ["lab", "autoscale"])
def test_all_commands_are_shell_that_parses(overlay_name):
    for pod in made("sweep", overlay_name):
        for container in (*pod.init, *pod.containers):
            subprocess.run(["bash", "-n", "-c", container.command], check=True, timeout=20)


def test_an_unknown_name_and_a_missing_secret_are_refused():
    with pytest.raises(LookupError, match="no RayCluster and no RayJob is called 'swep'"):
        pods(overlay("lab"), "swep")
    with pytest.raises(LookupError, match="the Secret 'ray-token' needs the key 'auth_token'"):
        pods(overlay("lab"), "sweep", secrets={"mlflow-client": {}})
    with pytest.raises(LookupError, match="from the Secret 'mlflow-client'"):
        pods(overlay("lab"), "sweep", secrets={"ray-token": {"auth_token": "x"}})


def test_the_pods_beside_ray_are_made_as_well():
    secrets = {name: {**values, "mlflow-password": "PG"} for name, values in example_secrets().items()}
    server = workload(overlay("lab"), "Deployment", "mlflow", secrets=secrets)
    assert server.init[0].command == "mlflow db upgrade postgresql://mlflow@postgres:5432/mlflow"
    assert server.command.startswith("mlflow server --host=0.0.0.0 --port=5000 --app-name=basic-auth")
    assert server.env["PGPASSWORD"] == "PG"
    assert server.env["MLFLOW_AUTH_ADMIN_USERNAME"] == "admin", "from envFrom"
    database = workload(overlay("lab"), "StatefulSet", "postgres", secrets=secrets)
    assert {mount.path: mount.claim for mount in database.mounts}["/var/lib/postgresql/data"] == "data-postgres-0"
    assert [database.name, database.role] == ["postgres-0", "other"]
    assert problems(server.manifest) == problems(database.manifest) == []
    with pytest.raises(LookupError, match="no Deployment is called 'mflow'"):
        workload(overlay("lab"), "Deployment", "mflow")


def test_without_secrets_their_places_are_named():
    (head, *_) = pods(overlay("lab"), "sweep")
    assert head.env["RAY_AUTH_TOKEN"] == "secret:ray-token/auth_token"
    assert head.name == "sweep-00000-head"


def test_rendered_objects_are_left_as_they_are():
    objects = overlay("autoscale")
    pods(objects, "sweep")
    assert objects == overlay("autoscale")
