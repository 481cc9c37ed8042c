"""The pods that KubeRay 1.7 makes of a RayCluster or RayJob: commands, environment, mounts, as the kubelet gets them.

Follows the operator's `common/pod.go` and `common/job.go`. Left out is what no manifest here uses: fault tolerance with
Redis, mTLS, accelerators other than GPUs, several hosts per replica, and probes.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import yaml

Object = dict[str, Any]
Secrets = Mapping[str, Mapping[str, str]]
Role = Literal["head", "worker", "submitter", "other"]

_BASH = ["/bin/bash", "-c", "--"]
_SUFFIXES = {"m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SUFFIXES |= {f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGTP", start=1)}
# `ray start` takes a value for these; of other parameters "true" becomes a bare flag and "false" nothing.
_BOOLEAN_VALUES = ("log-color", "include-dashboard", "include-log-monitor")
_HEALTHY = (
    "import sys, urllib.request; sys.exit('success' not in urllib.request.urlopen({url!r}, timeout=5).read().decode())"
)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A volume in a container; `claim` names its PersistentVolumeClaim, `source` is the volume as it was declared."""

    path: str
    volume: str
    source: Object
    read_only: bool = False

    @property
    def claim(self) -> str | None:
        return self.source.get("persistentVolumeClaim", {}).get("claimName")


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container: `command` is the shell text or the words that run in it, `env` has all values filled in."""

    name: str
    image: str
    command: str
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    requests: Mapping[str, str]
    limits: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod. Its own command, env, mounts and resources are those of its first container."""

    name: str
    role: Role
    labels: Mapping[str, str]
    init: tuple[Container, ...]
    containers: tuple[Container, ...]
    manifest: Object = field(repr=False)
    """The Pod object itself, for schema and lint."""

    @property
    def command(self) -> str:
        return self.containers[0].command

    @property
    def env(self) -> Mapping[str, str]:
        return self.containers[0].env

    @property
    def mounts(self) -> tuple[Mount, ...]:
        return self.containers[0].mounts

    @property
    def limits(self) -> Mapping[str, str]:
        return self.containers[0].limits

    @property
    def requests(self) -> Mapping[str, str]:
        return self.containers[0].requests

    def container(self, name: str) -> Container:
        """Return one of the containers or init containers."""
        return next(one for one in (*self.init, *self.containers) if one.name == name)


def pods(
    objects: Iterable[Object],
    name: str,
    *,
    secrets: Secrets | None = None,
    cluster: str | None = None,
    submission: str | None = None,
) -> list[Pod]:
    """Return the pods of the RayCluster or RayJob `name`: head, workers (one per replica), submitter.

    Args:
        objects: a rendered overlay.
        secrets: values by name and key. Without them a value reads `secret:NAME/KEY`.
        cluster: name of the RayCluster that a RayJob makes; the operator appends five random letters to the job's.
        submission: the id under which the job is submitted.
    Raises:
        LookupError: there is no such object, or `secrets` lacks what a container cannot start without.
    """
    owner = next((one for one in objects if one["kind"] in ("RayCluster", "RayJob") and _name(one) == name), None)
    if owner is None:
        raise LookupError(f"no RayCluster and no RayJob is called {name!r}")
    is_job = owner["kind"] == "RayJob"
    cluster = cluster or (f"{name}-00000" if is_job else name)
    manifests = list(_ray_pods(_cluster_spec(owner), cluster, owner["metadata"].get("namespace", "default")))
    if is_job and owner["spec"].get("submissionMode", "K8sJobMode") == "K8sJobMode":
        manifests.append(_submitter(owner, cluster, submission or f"{name}-00000"))
    return [_pod(manifest, secrets, _role(manifest)) for manifest in manifests]


def workload(objects: Iterable[Object], kind: str, name: str, *, secrets: Secrets | None = None) -> Pod:
    """Return the first pod of a Deployment, StatefulSet or Job, which Kubernetes makes without the operator.

    Raises:
        LookupError: there is no such object, or `secrets` lacks what a container cannot start without.
    """
    owner = next((one for one in objects if one["kind"] == kind and _name(one) == name), None)
    if owner is None:
        raise LookupError(f"no {kind} is called {name!r}")
    template = copy.deepcopy(owner["spec"]["template"])
    for claim in owner["spec"].get("volumeClaimTemplates", ()):
        source = {"persistentVolumeClaim": {"claimName": f"{_name(claim)}-{name}-0"}}
        template["spec"].setdefault("volumes", []).append({"name": _name(claim), **source})
    labels = template.get("metadata", {}).get("labels", {})
    metadata = {"name": f"{name}-0", "namespace": owner["metadata"].get("namespace", "default"), "labels": labels}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return _pod(manifest, secrets, "other")


def head_service(cluster: str, namespace: str) -> str:
    """Return the name by which workers and the submitter find the head."""
    return f"{cluster}-head-svc.{namespace}.svc.cluster.local"


def quantity(text: str | float) -> Fraction:
    """Return the value of a Kubernetes quantity such as `500m`, `8Gi` or `2`.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|[kMGTP]|[KMGTP]i)?", str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity; write for example 500m, 2 or 8Gi")
    return Fraction(match[1]) * _SUFFIXES.get(match[2], 1)


def ray_start(role: Literal["head", "worker"], params: Mapping[str, str], resources: Object, address: str = "") -> str:
    """Return the `ray start` command: the group's parameters, the operator's defaults, keys in order."""
    defaults = {"dashboard-host": "0.0.0.0"} if role == "head" else {"address": address}
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    if cpu := limits.get("cpu") or requests.get("cpu"):
        defaults["num-cpus"] = str(math.ceil(quantity(cpu)))
    if memory := limits.get("memory"):
        defaults["memory"] = str(math.ceil(quantity(memory)))
    gpus = [value for key, value in sorted(limits.items()) if key.endswith("gpu") and quantity(value)]
    if gpus:
        defaults["num-gpus"] = str(math.ceil(quantity(gpus[0])))
    defaults |= {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    words = ["ray start", *(["--head"] if role == "head" else [])]
    for key, value in sorted({**defaults, **params, "block": "true"}.items()):
        if value.lower() in ("true", "false") and key not in _BOOLEAN_VALUES:
            words += [f"--{key}"] if value.lower() == "true" else []
        else:
            words.append(f"--{key}={value}")
    return " ".join(words)


def _name(thing: Object) -> str:
    return thing["metadata"]["name"]


def _cluster_spec(owner: Object) -> Object:
    return owner["spec"]["rayClusterSpec"] if owner["kind"] == "RayJob" else owner["spec"]


def _ray_pods(spec: Object, cluster: str, namespace: str) -> Iterator[Object]:
    yield _ray_pod(spec, spec["headGroupSpec"], "head", f"{cluster}-head", cluster, namespace)
    for group in spec.get("workerGroupSpecs", ()):
        for number in range(group.get("replicas", 1)):
            pod_name = f"{cluster}-{group['groupName']}-worker-{number}"
            yield _ray_pod(spec, group, "worker", pod_name, cluster, namespace)


def _ray_pod(
    spec: Object, group: Object, role: Literal["head", "worker"], name: str, cluster: str, namespace: str
) -> Object:
    service = head_service(cluster, namespace)
    template = copy.deepcopy(group["template"])
    pod = template["spec"]
    container = pod["containers"][0]
    waiting = _wait_for_head(container, service) if role == "worker" else None
    params = {**group.get("rayStartParams", {}), **_ray_labels(group)}
    if scaled := spec.get("enableInTreeAutoscaling") and role == "head":
        params["no-monitor"] = "true"
        pod["containers"].append(_autoscaler(spec, container["image"]))
    if spec.get("enableInTreeAutoscaling") and spec.get("autoscalerOptions", {}).get("version") == "v2":
        pod["restartPolicy"] = "Never"
        if role == "head":
            container.setdefault("env", []).append({"name": "RAY_enable_autoscaler_v2", "value": "true"})
    if waiting:
        pod.setdefault("initContainers", []).append(waiting)
    for one in (container, *([waiting] if waiting else []), *(pod["containers"][-1:] if scaled else [])):
        _add_token(one, spec, cluster)
    start = ray_start(role, params, container.get("resources", {}), f"{service}:6379")
    own = " ".join([*container.get("command", ()), *container.get("args", ())])
    container["command"] = list(_BASH)
    container["args"] = [f"{own} && " * bool(own) + f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"]
    _add_env(container, _ray_env(role, service, start))
    _add_empty_dir(pod, container, "shared-mem", "/dev/shm", {"medium": "Memory"})
    if scaled:
        for one in (container, pod["containers"][-1]):
            _add_empty_dir(pod, one, "ray-logs", "/tmp/ray", {})
    metadata = template.get("metadata", {})
    labels = {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/is-ray-node": "yes",
        **metadata.get("labels", {}),
        **group.get("labels", {}),
        "ray.io/cluster": cluster,
        "ray.io/node-type": role,
        "ray.io/group": group.get("groupName", "headgroup"),
    }
    metadata = {**metadata, "name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}


def _ray_labels(group: Object) -> dict[str, str]:
    labels = ",".join(f"{key}={value}" for key, value in sorted(group.get("labels", {}).items()))
    return {"labels": labels} if labels else {}


def _ray_env(role: str, service: str, start: str) -> list[Object]:
    ip = "127.0.0.1" if role == "head" else service
    env = [{"name": "FQ_RAY_IP", "value": ip}, {"name": "RAY_IP", "value": ip.partition(".")[0]}]
    return [
        *(env if role == "worker" else []),
        {"name": "RAY_CLUSTER_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}},
        {"name": "RAY_CLUSTER_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "RAY_CLOUD_INSTANCE_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "RAY_NODE_TYPE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['ray.io/group']"}}},
        {"name": "KUBERAY_GEN_RAY_START_CMD", "value": start},
        {"name": "RAY_PORT", "value": "6379"},
        {"name": "RAY_ADDRESS", "value": f"{ip}:6379"},
        {"name": "RAY_USAGE_STATS_KUBERAY_IN_USE", "value": "1"},
        {"name": "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "value": "1"},
    ]


def _wait_for_head(container: Object, service: str) -> Object:
    """The init container of a worker: with the worker's env and mounts, without its `envFrom` and resources."""
    small = {"cpu": "200m", "memory": "256Mi"}
    kept = {key: container[key] for key in ("image", "imagePullPolicy", "securityContext") if key in container}
    wait = f"until ray health-check --address {service}:6379 > /dev/null 2>&1; do sleep 5; done"
    return copy.deepcopy(kept) | {
        "name": "wait-gcs-ready",
        "command": list(_BASH),
        "args": [wait],
        "env": [*copy.deepcopy(container.get("env", [])), {"name": "FQ_RAY_IP", "value": service}],
        "volumeMounts": copy.deepcopy(container.get("volumeMounts", [])),
        "resources": {"requests": dict(small), "limits": dict(small)},
    }


def _autoscaler(spec: Object, image: str) -> Object:
    options = copy.deepcopy(spec.get("autoscalerOptions", {}))
    small = {"cpu": "500m", "memory": "512Mi"}
    env = [
        {"name": "RAY_CLUSTER_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}},
        {"name": "RAY_CLUSTER_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "RAY_HEAD_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "KUBERAY_CRD_VER", "value": "v1"},
    ]
    made = {
        "name": "autoscaler",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(_BASH),
        "args": [
            "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
        ],
        "env": [*env, *options.get("env", [])],
        "resources": {"requests": dict(small), "limits": dict(small)},
    }
    taken = ("image", "imagePullPolicy", "envFrom", "volumeMounts", "securityContext", "resources")
    return made | {key: options[key] for key in taken if key in options}


def _submitter(job: Object, cluster: str, submission: str) -> Object:
    """The pod of the Kubernetes Job of a RayJob. It looks for the job first, so a second attempt only follows it."""
    spec, metadata = job["spec"], job["metadata"]
    namespace = metadata.get("namespace", "default")
    cluster_spec = spec["rayClusterSpec"]
    template = copy.deepcopy(spec.get("submitterPodTemplate")) or {"spec": {"containers": [_default_submitter(job)]}}
    pod = template["spec"]
    pod.setdefault("restartPolicy", "Never")
    container = pod["containers"][0]
    container.setdefault("image", cluster_spec["headGroupSpec"]["template"]["spec"]["containers"][0]["image"])
    address = f"http://{head_service(cluster, namespace)}:8265"
    if not container.get("command"):
        container["command"] = ["/bin/bash", "-ce", "--"]
        container["args"] = [_submission(spec, address, submission)]
    _add_env(
        container,
        [
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "RAY_DASHBOARD_ADDRESS", "value": address},
            {"name": "RAY_JOB_SUBMISSION_ID", "value": submission},
        ],
    )
    _add_token(container, cluster_spec, cluster)
    labels = {
        **template.get("metadata", {}).get("labels", {}),
        "ray.io/originated-from-cr-name": metadata["name"],
        "ray.io/originated-from-crd": "RayJob",
    }
    made = {"name": f"{metadata['name']}-submitter", "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": made, "spec": pod}


def _default_submitter(job: Object) -> Object:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    resources = {"requests": {"cpu": "500m", "memory": "200Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    return {"name": "ray-job-submitter", "image": head["image"], "resources": resources}


def _submission(spec: Object, address: str, submission: str) -> str:
    healthy = f"python3 -c {shlex.quote(_HEALTHY.format(url=f'{address}/api/gcs_healthz'))}"
    submit = f"ray job submit --address {address} --no-wait"
    if spec.get("runtimeEnvYAML"):
        submit += f" --runtime-env-json {json.dumps(json.dumps(yaml.safe_load(spec['runtimeEnvYAML'])))}"
    for key, flag in (("entrypointNumCpus", "--entrypoint-num-cpus"), ("entrypointNumGpus", "--entrypoint-num-gpus")):
        submit += f" {flag} {spec[key]:f}" if spec.get(key) else ""
    return (
        f"until {healthy} >/dev/null 2>&1 ; do echo 'waiting for {address}' ; sleep 2 ; done ; "
        f"if ! ray job status --address {address} {submission} >/dev/null 2>&1 ; "
        f"then {submit} --submission-id {submission} -- {spec['entrypoint'].strip()} ; fi ; "
        f"ray job logs --address {address} --follow {submission}"
    )


def _add_token(container: Object, spec: Object, cluster: str) -> None:
    options = spec.get("authOptions", {})
    if options.get("mode") != "token":
        return
    key = {"name": options.get("secretName") or cluster, "key": "auth_token"}
    _add_env(
        container,
        [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": key}},
        ],
    )


def _add_env(container: Object, added: list[Object]) -> None:
    """Append variables that are not there yet: what the manifest says goes first."""
    env = container.setdefault("env", [])
    known = {one["name"] for one in env}
    env += [one for one in added if one["name"] not in known]


def _add_empty_dir(pod: Object, container: Object, volume: str, path: str, source: Object) -> None:
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    mounts.append({"name": volume, "mountPath": path})
    volumes = pod.setdefault("volumes", [])
    if all(one["name"] != volume for one in volumes):
        volumes.append({"name": volume, "emptyDir": source})


def _role(manifest: Object) -> Role:
    role = manifest["metadata"]["labels"].get("ray.io/node-type")
    return role if role in ("head", "worker") else "submitter"


def _pod(manifest: Object, secrets: Secrets | None, role: Role) -> Pod:
    spec, labels = manifest["spec"], manifest["metadata"]["labels"]
    volumes = {one["name"]: {key: one[key] for key in one if key != "name"} for one in spec.get("volumes", ())}
    init, main = (
        tuple(_container(one, manifest, volumes, secrets) for one in spec.get(kind, ()))
        for kind in ("initContainers", "containers")
    )
    return Pod(name=_name(manifest), role=role, labels=labels, init=init, containers=main, manifest=manifest)


def _container(raw: Object, pod: Object, volumes: Mapping[str, Object], secrets: Secrets | None) -> Container:
    env = _env(raw, pod, secrets)
    words = [expand(word, env) for word in (*raw.get("command", ()), *raw.get("args", ()))]
    is_shell = words[:1] == ["/bin/bash"]
    mounts = tuple(
        Mount(
            path=one["mountPath"],
            volume=one["name"],
            source=volumes.get(one["name"], {}),
            read_only=one.get("readOnly", False),
        )
        for one in raw.get("volumeMounts", ())
    )
    resources = raw.get("resources", {})
    return Container(
        name=raw["name"],
        image=raw["image"],
        command=words[-1] if is_shell else shlex.join(words),
        env=env,
        mounts=mounts,
        requests=resources.get("requests", {}),
        limits=resources.get("limits", {}),
    )


def _env(raw: Object, pod: Object, secrets: Secrets | None) -> dict[str, str]:
    env: dict[str, str] = {}
    for source in raw.get("envFrom", ()):
        name = source.get("secretRef", {}).get("name")
        if secrets is not None and name:
            if name not in secrets:
                raise LookupError(f"container {raw['name']!r} takes its environment from the Secret {name!r}: give it")
            env |= secrets[name]
    for one in raw.get("env", ()):
        origin = one.get("valueFrom")
        env[one["name"]] = _value(origin, pod, secrets) if origin else expand(one.get("value", ""), env)
    return env


def _value(origin: Object, pod: Object, secrets: Secrets | None) -> str:
    if path := origin.get("fieldRef", {}).get("fieldPath"):
        if label := re.fullmatch(r"metadata\.labels\['(.+)'\]", path):
            return pod["metadata"]["labels"][label[1]]
        return pod["metadata"][path.removeprefix("metadata.")]
    name, key = origin["secretKeyRef"]["name"], origin["secretKeyRef"]["key"]
    if secrets is None:
        return f"secret:{name}/{key}"
    if key not in secrets.get(name, {}):
        raise LookupError(f"the Secret {name!r} needs the key {key!r}")
    return secrets[name][key]


def expand(text: str, env: Mapping[str, str]) -> str:
    """Fill in `$(NAME)` as the kubelet does: `$$` is a dollar sign, an unknown name stays as it is."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)",
        lambda match: "$" if match[0] == "$$" else env.get(match[1], match[0]),
        text,
    )
