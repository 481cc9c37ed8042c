"""k8s/: every overlay, and every component on top of one, is held against schemas, rules and the pods made of it."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eegvision.cli import parse
from k8s import rules
from k8s.manifests import env, label, of_kind, ray_containers, templates
from k8s.pods import pods
from k8s.rendered import K8S, ROOT, components, overlay, overlays, rendered, with_components
from k8s.rules import lint
from k8s.safety import images_pinned, literal_secrets, pod_security
from k8s.schemas import problems

POD_RULES = (
    *(rules.request_over_limit, rules.memory_limits, rules.gpus, rules.mounts),
    *(images_pinned, literal_secrets, pod_security),
)
SECRETS = {
    "ray-token": {"auth_token": "T0KEN"},
    "mlflow-client": {"MLFLOW_TRACKING_USERNAME": "ray", "MLFLOW_TRACKING_PASSWORD": "PASSW0RD"},
}
SETS = [(name, []) for name in overlays()] + [("lab", [name]) for name in components()]
SETS += [(name, components()) for name in ("autoscale", "lab", "queue")]


@pytest.fixture(params=SETS, ids=lambda one: "+".join([one[0], *one[1]]), scope="module")
def objects(request, tmp_path_factory) -> list[dict[str, Any]]:
    """An overlay, or one with components, rendered."""
    name, added = request.param
    return with_components(name, added, tmp_path_factory.mktemp("set")) if added else overlay(name)


@pytest.fixture
def lab_with(tmp_path):
    """Render the overlay `lab` with components."""
    return lambda *added: with_components("lab", list(added), tmp_path)


def test_ours_are_all_there():
    assert {"autoscale", "dev", "lab", "queue"} <= set(overlays())
    assert set(components()) == {"monitoring", "spot", "tls"}


@pytest.mark.parametrize("name", ["autoscale", "dev", "lab", "queue"])
def test_ours_have_all_that_the_rules_look_at(name):
    have = {label(thing) for thing in overlay(name)}
    assert {"Deployment/mlflow", "StatefulSet/postgres", "RayJob/sweep", "PodDisruptionBudget/ray-head"} <= have
    assert {"Namespace/eegvision", "PersistentVolumeClaim/eeg-shared", "Role/researcher", "Job/mlflow-user"} <= have
    assert ("RayCluster/interactive" in have) == (name != "queue")


def test_the_overlay_in_the_readme_renders_and_holds(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    here = os.path.relpath(K8S, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        text.replace("../../", f"{here}/").replace("../lab", f"{here}/overlays/lab")
    )
    objects = rendered(tmp_path)
    assert lint(objects) == {}
    assert [problem for thing in objects for problem in problems(thing)] == []
    images = {container["image"] for one in templates(objects) for _, container in one.containers}
    assert images == {"postgres:17.6", f"registry.our-lab.org/eegvision:0.1.0-ray{rules.locked_version('ray')}"}


def test_the_schemas_hold(objects):
    assert [problem for thing in objects for problem in problems(thing)] == []


def test_the_rules_hold(objects):
    assert lint(objects) == {}


def test_the_pods_made_of_it_keep_to_schemas_and_rules(objects):
    made = [pod.manifest for name in _clusters(objects) for pod in pods(objects, name)]
    assert {pod["metadata"]["labels"].get("ray.io/node-type") for pod in made} >= {"head", None}
    assert [problem for pod in made for problem in problems(pod)] == []
    assert [problem for rule in POD_RULES for problem in rule(made)] == []


def test_tokens_and_passwords_reach_pods_by_the_environment_alone(objects):
    for name in _clusters(objects):
        for pod in pods(objects, name, secrets=SECRETS):
            for container in (*pod.init, *pod.containers):
                assert container.env["RAY_AUTH_TOKEN"] == "T0KEN"
                assert container.env["RAY_AUTH_MODE"] == "token"
                assert "T0KEN" not in container.command
                assert "PASSW0RD" not in container.command
            assert (pod.env.get("MLFLOW_TRACKING_PASSWORD") == "PASSW0RD") == (pod.role != "submitter")


@pytest.mark.parametrize("name", ["autoscale", "dev", "lab"])
def test_the_interactive_cluster_is_that_of_the_sweep(name):
    specs = {thing["kind"]: thing["spec"] for thing in of_kind(overlay(name), "RayCluster", "RayJob")}
    assert specs["RayCluster"] == {**specs["RayJob"]["rayClusterSpec"], "suspend": True}


def test_the_entrypoint_is_one_that_the_job_understands(objects, monkeypatch):
    (job,) = of_kind(objects, "RayJob")
    program, file, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, file) == ("python", "jobs/sweep.py")
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    options = parse(importlib.import_module("sweep").Options, words)
    del sys.modules["sweep"]
    assert options.name, "a retry resumes by it"
    assert (ROOT / options.space).is_file()
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert options.sweep.cpus_per_trial <= float(workers["resources"]["limits"]["cpu"]), "or no trial would ever start"


def test_without_a_renderer_tests_are_skipped_but_fail_where_they_must_run(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="neither kubectl nor kustomize"):
        with_components("lab", [], tmp_path)
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception, match="neither kubectl nor kustomize"):
        with_components("lab", [], tmp_path)


def test_an_overlay_that_does_not_render_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"does not render: .*nowhere"):
        with_components("nowhere", [], tmp_path)


# Asks an API server, so only where somebody names one; the schemas and rules above stand in for it everywhere else.
@pytest.mark.skipif("EEG_KUBECONFIG" not in os.environ, reason="EEG_KUBECONFIG names no cluster to ask")
@pytest.mark.parametrize("name", overlays())
def test_a_real_server_takes_it(name):
    ask = ["kubectl", "--kubeconfig", os.environ["EEG_KUBECONFIG"], "apply", "--dry-run=server", "--validate=strict"]
    subprocess.run([*ask, "-k", str(K8S / "overlays" / name)], check=True, timeout=120)


def test_a_queue_and_an_autoscaler_never_meet():
    assert not of_kind(overlay("autoscale"), "LocalQueue")
    (job,) = of_kind(overlay("autoscale"), "RayJob")
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    (job,) = of_kind(overlay("queue"), "RayJob")
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    assert job["metadata"]["labels"][rules.QUEUE] == of_kind(overlay("queue"), "LocalQueue")[0]["metadata"]["name"]


def test_dev_needs_neither_gpu_nor_bucket_nor_registry():
    text = yaml.safe_dump(overlay("dev"))
    assert "nvidia.com/gpu" not in text
    assert "s3://" not in text
    assert "registry." not in text


def test_spot_machines_get_workers_and_nothing_else(lab_with):
    taint = {"key": "ray.io/market-type", "operator": "Equal", "value": "spot", "effect": "NoSchedule"}
    tolerant = [one for one in templates(lab_with("spot")) if taint in one.spec.get("tolerations", [])]
    assert [(one.owner["kind"], one.role) for one in tolerant] == [("RayJob", "worker")]
    (spot,) = tolerant
    assert spot.spec["nodeSelector"] == {"ray.io/market-type": "spot"}
    assert spot.spec["terminationGracePeriodSeconds"] >= 120
    made = [pod for pod in pods(lab_with("spot"), "sweep") if pod.labels.get("ray.io/group") == "spot"]
    assert len(made) == 2
    assert all("--labels=ray.io/market-type=spot" in pod.command for pod in made)


def test_metrics_are_collected_from_named_ports_and_open_to_monitoring_alone(lab_with):
    objects = lab_with("monitoring")
    numbers = set()
    for monitor in of_kind(objects, "PodMonitor"):
        role = monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"]
        wanted = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
        for template, _, container in ray_containers(objects, role):
            ports = {one["name"]: one["containerPort"] for one in container["ports"]}
            assert wanted <= ports.keys(), template.path
            numbers |= {ports[name] for name in wanted}
    assert numbers == {8080, 44217, 44227}
    (policy,) = (one for one in of_kind(objects, "NetworkPolicy") if one["metadata"]["name"] == "ray-metrics")
    (rule,) = policy["spec"]["ingress"]
    assert {one["port"] for one in rule["ports"]} == numbers
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for _, _, head in ray_containers(objects, "head"):
        assert {"RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST"} <= env(head).keys()


def test_without_monitoring_nobody_reads_metrics():
    ports = {
        port["port"]
        for policy in of_kind(overlay("lab"), "NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        for port in rule.get("ports", [])
    }
    assert ports == {8265, 5000, 5432}


def test_tls_opens_mlflow_alone_under_a_name_that_it_answers_to(lab_with):
    objects = lab_with("tls")
    (ingress,) = of_kind(objects, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == "mlflow"
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    (server,) = of_kind(objects, "Deployment")
    given = env(server["spec"]["template"]["spec"]["containers"][0])
    assert rule["host"] in (given["MLFLOW_SERVER_ALLOWED_HOSTS"] or "").split(",")
    assert given["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == f"https://{rule['host']}"


@pytest.mark.parametrize("file", sorted(K8S.rglob("*.example")), ids=lambda path: path.name)
def test_examples_are_whole_and_hold_no_secret(file: Path):
    for thing in yaml.safe_load_all(file.read_text()):
        assert problems(thing) == []
        if thing["kind"] == "Secret":
            assert "data" not in thing
            assert set(thing["stringData"].values()) <= {"CHANGE-ME", "admin", "ray"}


def test_every_secret_of_the_example_is_used():
    text = "\n".join(path.read_text() for path in sorted((K8S / "base").glob("*.yaml")))
    for name, values in rules.example_secrets().items():
        assert f"name: {name}" in text or f"secretName: {name}" in text
        assert values


def _clusters(objects: list[dict[str, Any]]) -> list[str]:
    return [thing["metadata"]["name"] for thing in of_kind(objects, "RayCluster", "RayJob")]
