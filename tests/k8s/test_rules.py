"""k8s.rules, k8s.safety: every rule fires on its bad manifest, alone, and names object and field."""

import copy
import json
from typing import Any, NamedTuple

import pytest

from k8s.manifests import label
from k8s.rendered import overlay
from k8s.rules import RULES, lint

GONE = object()
SWEEP, ASLEEP, MLFLOW = "RayJob/sweep", "RayCluster/interactive", "Deployment/mlflow"
POSTGRES = "StatefulSet/postgres"
HEAD, WORKERS = "/spec/rayClusterSpec/headGroupSpec", "/spec/rayClusterSpec/workerGroupSpecs/0"
POD, CONTAINER = "/template/spec", "/template/spec/containers/0"
SERVER = "/spec/template/spec/containers/0"
DELETE_SELF = {"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}}
PATH_TO_RAY = {
    "rules": [{"http": {"paths": [{"backend": {"service": {"name": "sweep-head-svc", "port": {"number": 8265}}}}]}}]
}


class Bad(NamedTuple):
    """A change of a good overlay: what stands at a pointer is replaced, `GONE` removes it.

    A pointer is a JSON pointer in which an item of a list may be called by its `name`.
    """

    rule: str
    target: str
    pointer: str
    value: Any
    base: str = "lab"
    says: str = ""


BAD = [
    Bad("names", SWEEP, "/metadata/name", "x" * 48),
    Bad("names", SWEEP, "/metadata/name", "Sweep_1"),
    Bad("names", ASLEEP, "/metadata/name", "1st"),
    Bad("submission_mode", SWEEP, "/spec/submissionMode", "K8SJobMode"),
    Bad("managed_by", SWEEP, "/spec/managedBy", "kueue"),
    Bad(
        "deletion_conditions",
        SWEEP,
        "/spec/deletionStrategy",
        {"onSuccess": {"policy": "DeleteSelf"}, "deletionRules": []},
    ),
    Bad("shutdown", SWEEP, "/spec/shutdownAfterJobFinishes", GONE),
    Bad("deletion_rules", SWEEP, "/spec/deletionStrategy", {"deletionRules": [DELETE_SELF]}, says="shutdownAfter"),
    Bad("auth_version", SWEEP, "/spec/rayClusterSpec/authOptions/enableK8sTokenAuth", True),
    Bad("start_params", SWEEP, f"{HEAD}/rayStartParams/num-cpus", 0, says="quotes"),
    Bad("start_params", SWEEP, f"{HEAD}/resources", {"CPU": "1"}),
    Bad("start_params", SWEEP, f"{WORKERS}/rayStartParams/labels", "a=b"),
    Bad("replicas", SWEEP, f"{WORKERS}/minReplicas", 3),
    Bad("replicas", SWEEP, f"{WORKERS}/maxReplicas", GONE),
    Bad("replicas", SWEEP, f"{WORKERS}/minReplicas", -1),
    Bad("autoscaler_restart", SWEEP, f"{WORKERS}{POD}/restartPolicy", "Always", "autoscale"),
    Bad("redis", SWEEP, f"{HEAD}{CONTAINER}/env/-", {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}),
    Bad("job_modes", SWEEP, "/spec/submissionMode", "InteractiveMode"),
    Bad("job_modes", SWEEP, "/spec/submissionMode", "SidecarMode"),
    Bad("job_modes", SWEEP, "/spec/clusterSelector", {"ray.io/cluster": "interactive"}),
    Bad("feature_gates", ASLEEP, "/spec/networkPolicy", {}),
    Bad("feature_gates", ASLEEP, "/spec/tlsOptions", {}),
    Bad("feature_gates", SWEEP, "/kind", "RayCronJob"),
    Bad("request_over_limit", MLFLOW, f"{SERVER}/resources/requests/cpu", "3"),
    Bad("memory_limits", SWEEP, f"{WORKERS}{CONTAINER}/resources/requests/memory", "16Gi"),
    Bad("memory_limits", SWEEP, "/spec/submitterPodTemplate/spec/containers/0/resources", {}),
    Bad("gpus", SWEEP, f"{WORKERS}{CONTAINER}/resources/requests/nvidia.com~1gpu", GONE),
    Bad("gpus", SWEEP, f"{WORKERS}{CONTAINER}/resources/limits/nvidia.com~1gpus", "1", says="no node has it"),
    Bad("mounts", SWEEP, f"{WORKERS}{CONTAINER}/volumeMounts/tmp/name", "temp", says="declare a volume"),
    Bad("mounts", SWEEP, "/spec/rayClusterSpec/autoscalerOptions/volumeMounts/0/name", "house", "autoscale"),
    Bad("references", MLFLOW, "/spec/template/spec/volumes/1/configMap/name", "mlflow-auth"),
    Bad("references", SWEEP, f"{HEAD}{POD}/serviceAccountName", "raay"),
    Bad("references", SWEEP, f"{HEAD}{CONTAINER}/envFrom/0/secretRef/name", "mlflow-clients"),
    Bad("references", SWEEP, "/spec/rayClusterSpec/authOptions/secretName", "token"),
    Bad("references", "PersistentVolumeClaim/eeg-shared", "/metadata/name", "eeg"),
    Bad("one_image", SWEEP, f"{WORKERS}{CONTAINER}/image", "eegvision:0.1.1-ray2.60.0"),
    Bad("retries", SWEEP, "/spec/backoffLimit", GONE),
    Bad("retries", SWEEP, "/spec/activeDeadlineSeconds", GONE),
    Bad("retries", SWEEP, "/spec/preRunningDeadlineSeconds", GONE),
    Bad("retries", SWEEP, "/spec/entrypoint", "python jobs/sweep.py"),
    Bad("detection", SWEEP, f"{HEAD}{CONTAINER}/env/RAY_health_check_failure_threshold/value", "5", says="14 s"),
    Bad("environment", SWEEP, f"{HEAD}{CONTAINER}/env/HOME/value", "/root"),
    Bad("environment", SWEEP, f"{HEAD}{CONTAINER}/env/MLFLOW_TRACKING_URI", GONE),
    Bad("environment", SWEEP, f"{HEAD}{CONTAINER}/env/RAY_USAGE_STATS_ENABLED/value", "1"),
    Bad("environment", SWEEP, f"{HEAD}{CONTAINER}/env/TUNE_GLOBAL_CHECKPOINT_S", GONE),
    Bad("shared_paths", SWEEP, f"{WORKERS}{CONTAINER}/env/EEGVISION_HOME/value", "/mnt/shared/elsewhere"),
    Bad("shared_claims", "PersistentVolumeClaim/eeg-shared", "/spec/accessModes", ["ReadWriteOnce"]),
    Bad("queueing", SWEEP, f"{WORKERS}/minReplicas", 1, "queue"),
    Bad("queueing", SWEEP, "/metadata/labels/kueue.x-k8s.io~1queue-name", "default", "queue"),
    Bad("images_pinned", POSTGRES, f"{SERVER}/image", "postgres:latest"),
    Bad("images_pinned", POSTGRES, f"{SERVER}/image", "registry.example.org:5000/postgres"),
    Bad("literal_secrets", MLFLOW, f"{SERVER}/env/PGPASSWORD", {"name": "PGPASSWORD", "value": "abc"}),
    Bad(
        "literal_secrets",
        MLFLOW,
        f"{SERVER}/env/MLFLOW_BACKEND_STORE_URI/value",
        "postgresql://mlflow:abc@postgres:5432/mlflow",
    ),
    Bad("literal_secrets", MLFLOW, f"{SERVER}/command/-", "--password=abc"),
    Bad("literal_secrets", SWEEP, "/spec/runtimeEnvYAML", "env_vars: {RAY_AUTH_TOKEN: abc}"),
    Bad("runtime_installs", SWEEP, "/spec/runtimeEnvYAML", "pip: [mne]"),
    Bad("exposure", "Service/mlflow", "/spec/type", "LoadBalancer"),
    Bad("exposure", SWEEP, f"{HEAD}/serviceType", "NodePort"),
    Bad("exposure", ASLEEP, "/spec/headGroupSpec/enableIngress", True),
    Bad("pod_security", SWEEP, f"{WORKERS}{POD}/securityContext/runAsNonRoot", GONE),
    Bad("pod_security", SWEEP, f"{WORKERS}{POD}/securityContext/runAsUser", 0),
    Bad("pod_security", SWEEP, f"{HEAD}{POD}/securityContext/seccompProfile", GONE),
    Bad("pod_security", SWEEP, f"{HEAD}{CONTAINER}/securityContext/capabilities", GONE),
    Bad("pod_security", SWEEP, f"{HEAD}{CONTAINER}/securityContext/capabilities/add", ["SYS_PTRACE"]),
    Bad("pod_security", SWEEP, f"{HEAD}{POD}/hostNetwork", True),
    Bad("pod_security", SWEEP, f"{HEAD}{POD}/volumes/1", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    Bad("pod_security", SWEEP, "/spec/submitterPodTemplate/spec/containers/0/securityContext", GONE),
    Bad("pod_security", SWEEP, "/spec/submitterPodTemplate", GONE),
    Bad("pod_security", SWEEP, "/spec/rayClusterSpec/autoscalerOptions/securityContext", GONE, "autoscale"),
    Bad("pod_security", MLFLOW, "/spec/template/spec/initContainers/0/securityContext", GONE),
    Bad("tokens", SWEEP, "/spec/rayClusterSpec/authOptions", GONE),
    Bad("tokens", SWEEP, f"{HEAD}{CONTAINER}/env/RAY_AUTH_MODE/value", "disabled"),
    Bad("tokens", SWEEP, f"{WORKERS}{CONTAINER}/env/RAY_AUTH_MODE", GONE),
    Bad("tokens", SWEEP, "/spec/submitterPodTemplate/spec/containers/0/env/RAY_AUTH_MODE", GONE),
    Bad("tokens", SWEEP, "/spec/rayClusterSpec/autoscalerOptions/env/-", {"name": "RAY_AUTH_MODE"}, "autoscale"),
    Bad("api_access", SWEEP, f"{HEAD}{POD}/automountServiceAccountToken", True),
    Bad("api_access", POSTGRES, "/spec/template/spec/automountServiceAccountToken", GONE),
    Bad("api_access", "ServiceAccount/ray", "/automountServiceAccountToken", GONE),
    Bad("api_access", SWEEP, f"{HEAD}{POD}/serviceAccountName", "ray", "autoscale"),
    Bad("api_access", "Role/researcher", "/rules/0/resources", ["secrets"]),
    Bad("namespaces", "Service/mlflow", "/metadata/namespace", GONE),
    Bad("namespaces", "Namespace/eegvision", "/metadata/labels/pod-security.kubernetes.io~1enforce", "baseline"),
    Bad("network", "NetworkPolicy/deny-ingress", "/spec/podSelector", {"matchLabels": {"a": "b"}}),
    Bad("network", "NetworkPolicy/ray", "/spec/podSelector/matchLabels", {"ray.io/is-ray-node": "true"}),
    Bad("network", "NetworkPolicy/ray", "/spec/ingress/2/ports", GONE),
    Bad("network", "NetworkPolicy/ray", "/spec/ingress/2/ports/-", {"protocol": "TCP", "port": 10001}),
    Bad("network", "NetworkPolicy/ray", "/spec/ingress/2/from", [{"namespaceSelector": {}}]),
    Bad("network", "NetworkPolicy/mlflow", "/spec/ingress/0/from", GONE),
    Bad("network", "NetworkPolicy/mlflow", "/spec/ingress/0/from/0", {"ipBlock": {"cidr": "0.0.0.0/0"}}),
    Bad(
        "database",
        "NetworkPolicy/postgres",
        "/spec/ingress/0/from/0/podSelector/matchLabels",
        {"ray.io/is-ray-node": "yes"},
    ),
    Bad("database", "NetworkPolicy/postgres", "/spec/policyTypes", ["Ingress"]),
    Bad(
        "database", MLFLOW, f"{SERVER}/env/MLFLOW_BACKEND_STORE_URI/value", "postgresql://postgres@postgres:5432/mlflow"
    ),
    Bad("disruption", "PodDisruptionBudget/ray-head", "/spec/maxUnavailable", 1),
    Bad("disruption", "PodDisruptionBudget/ray-head", "/spec/selector/matchLabels", {"ray.io/node-type": "worker"}),
    Bad("tracking_server", MLFLOW, f"{SERVER}/command/4", GONE),
    Bad("tracking_server", MLFLOW, f"{SERVER}/env/MLFLOW_SERVER_ALLOWED_HOSTS/value", "*"),
    Bad("tracking_server", MLFLOW, f"{SERVER}/env/MLFLOW_SERVER_ALLOWED_HOSTS/value", "localhost", says="403"),
    Bad("tracking_server", MLFLOW, f"{SERVER}/env/MLFLOW_SERVER_CORS_ALLOWED_ORIGINS/value", "*"),
    Bad("tracking_server", MLFLOW, "/spec/strategy", {"type": "RollingUpdate"}),
    Bad("tracking_server", MLFLOW, "/spec/template/spec/initContainers", GONE),
    Bad("tracking_server", MLFLOW, f"{SERVER}/readinessProbe/httpGet/path", "/metrics"),
    Bad("server_secrets", SWEEP, f"{WORKERS}{CONTAINER}/envFrom/0/secretRef/name", "mlflow-server"),
]

# What takes more than one change, or a new object.
ADDED: dict[str, list[dict[str, Any]]] = {
    "no_secret": [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "stringData": {"a": "b"}}],
    "exposure": [
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "x"}, "spec": PATH_TO_RAY}
    ],
    "feature_gates": [{"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": {"name": "x"}, "spec": {}}],
    "literal_secrets": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "password = abc"}}
    ],
    "tracking_server": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "x"},
            "data": {
                "basic_auth.ini": "[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = postgresql://mlflow@postgres/a"
            },
        }
    ],
    "queueing": [
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "LocalQueue",
            "metadata": {"name": "x"},
            "spec": {"clusterQueue": "a"},
        }
    ],
}


def changed(objects: list[dict[str, Any]], target: str, pointer: str, value: Any) -> list[dict[str, Any]]:
    """Return the objects with one place of one object replaced, appended to (`-`) or removed."""
    objects = copy.deepcopy(objects)
    (place,) = (thing for thing in objects if label(thing) == target)
    *path, last = (word.replace("~1", "/") for word in pointer.split("/")[1:])
    here: Any = place
    for word in path:
        here = here[_key(here, word)]
    if last == "-":
        here.append(value)
    elif value is GONE:
        del here[_key(here, last)]
    else:
        here[_key(here, last)] = value
    return objects


def _key(here: Any, word: str) -> int | str:
    if not isinstance(here, list):
        return word
    return int(word) if word.isdigit() else next(index for index, one in enumerate(here) if one["name"] == word)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.rule}-{bad.target}{bad.pointer}"[:100])
def test_a_rule_fires_on_its_bad_manifest_and_no_other_does(bad):
    found = lint(changed(overlay(bad.base), bad.target, bad.pointer, bad.value))
    assert list(found) == [bad.rule], found
    assert bad.says in found[bad.rule][0]


@pytest.mark.parametrize("rule", ADDED)
def test_a_rule_fires_on_an_object_that_should_not_be_there(rule):
    added = [thing | {"metadata": {**thing["metadata"], "namespace": "eegvision"}} for thing in ADDED[rule]]
    base = "autoscale" if rule == "queueing" else "lab"
    assert list(lint([*overlay(base), *added])) == [rule]


def test_every_rule_has_a_bad_manifest():
    assert {bad.rule for bad in BAD} | set(ADDED) | {"ray_version", "deletion_rules"} == set(RULES)


def test_every_rule_says_what_it_holds():
    assert [name for name, rule in RULES.items() if not rule.__doc__] == []


def test_a_problem_names_object_field_value_and_remedy():
    found = lint(changed(overlay("lab"), SWEEP, f"{WORKERS}/minReplicas", 3))
    assert found["replicas"] == [
        "RayJob/sweep: spec.rayClusterSpec.workerGroupSpecs.0.replicas is (3, 2, 2); "
        "give 0 <= minReplicas <= replicas <= maxReplicas"
    ]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([{"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}], "autoscaler"),
        ([DELETE_SELF, DELETE_SELF], "keep one"),
        (
            [DELETE_SELF, {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 90}}],
            "first",
        ),
    ],
)
def test_deletion_rules_are_in_order(rules, says):
    objects = changed(overlay("autoscale"), SWEEP, "/spec/deletionStrategy", {"deletionRules": rules})
    objects = changed(objects, SWEEP, "/spec/shutdownAfterJobFinishes", GONE)
    objects = changed(objects, SWEEP, "/spec/ttlSecondsAfterFinished", GONE)
    found = lint(objects)
    assert list(found) == ["deletion_rules"]
    assert says in found["deletion_rules"][0]


@pytest.mark.parametrize("condition", [{}, {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}])
def test_a_deletion_rule_has_one_condition(condition):
    strategy = {"deletionRules": [{"policy": "DeleteSelf", "condition": condition}]}
    objects = changed(overlay("lab"), SWEEP, "/spec/deletionStrategy", strategy)
    objects = changed(objects, SWEEP, "/spec/shutdownAfterJobFinishes", GONE)
    objects = changed(objects, SWEEP, "/spec/ttlSecondsAfterFinished", GONE)
    assert list(lint(objects)) == ["deletion_conditions"]


@pytest.mark.parametrize("version", ["2.51.9", "2.60.1"])
def test_the_version_of_ray_is_the_locks_and_has_tokens(version):
    found = lint(changed(overlay("lab"), SWEEP, "/spec/rayClusterSpec/rayVersion", version))
    assert set(found) == ({"ray_version", "auth_version"} if version < "2.52" else {"ray_version"})


def test_an_image_without_the_version_of_ray_in_its_tag_cannot_be_told_from_another():
    objects = overlay("lab")
    for container in [
        *(group["template"]["spec"]["containers"][0] for group in _groups(objects)),
        _named(objects, SWEEP)["spec"]["submitterPodTemplate"]["spec"]["containers"][0],
    ]:
        container["image"] = "registry.example.org/lab/eegvision:0.1.0"
    assert list(lint(objects)) == ["ray_version"]


def test_a_digest_beside_the_tag_is_welcome_and_one_alone_hides_the_version():
    text = json.dumps(overlay("lab"))
    digest = f"@sha256:{'0a' * 32}"
    assert lint(json.loads(text.replace("-ray2.60.0", f"-ray2.60.0{digest}"))) == {}
    assert list(lint(json.loads(text.replace(":0.1.0-ray2.60.0", digest)))) == ["ray_version"]


def test_kueue_takes_seven_groups_at_most():
    objects = overlay("queue")
    spec = _named(objects, SWEEP)["spec"]["rayClusterSpec"]
    spec["workerGroupSpecs"] = [{**spec["workerGroupSpecs"][0], "groupName": f"g{number}"} for number in range(8)]
    assert list(lint(objects)) == ["queueing"]


def _named(objects: list[dict[str, Any]], target: str) -> dict[str, Any]:
    return next(thing for thing in objects if label(thing) == target)


def _groups(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    specs = [_named(objects, SWEEP)["spec"]["rayClusterSpec"], _named(objects, ASLEEP)["spec"]]
    return [group for spec in specs for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
