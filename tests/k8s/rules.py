"""What the API server lets through and KubeRay, Kueue or the kubelet then refuse, or what ends a sweep halfway.

A rule takes the rendered objects and yields its problems, each naming object, field, value and remedy. Rules about
secrets, rights and networks are in `k8s.safety`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import yaml

from k8s.manifests import Object, clusters, env, of_kind, problem, ray_containers, templates
from k8s.pods import quantity
from k8s.rendered import K8S, ROOT
from k8s.safety import SAFETY

Problems = Iterator[str]
Rule = Callable[[list[Object]], Problems]

_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
_DETECTION_LIMIT_S = 10.0
QUEUE = "kueue.x-k8s.io/queue-name"


def names(objects: list[Object]) -> Problems:
    """The operator appends to names: RayJobs have room for 47 letters, RayClusters for 53, of a DNS label."""
    for thing in of_kind(objects, "RayJob", "RayCluster"):
        name, most = thing["metadata"]["name"], 47 if thing["kind"] == "RayJob" else 53
        if len(name) > most or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            remedy = f"use at most {most} of a-z, 0-9 and '-', beginning with a letter and not ending with '-'"
            yield problem(thing, "metadata.name", name, remedy)


def submission_mode(objects: list[Object]) -> Problems:
    """The schema takes any text as submission mode."""
    for job in of_kind(objects, "RayJob"):
        if (mode := job["spec"].get("submissionMode", "K8sJobMode")) not in _MODES:
            yield problem(job, "spec.submissionMode", mode, f"write one of {', '.join(_MODES)}")


def managed_by(objects: list[Object]) -> Problems:
    """Only two managers exist (a CEL rule)."""
    for thing in of_kind(objects, "RayJob", "RayCluster"):
        if (manager := thing["spec"].get("managedBy", _MANAGERS[0])) not in _MANAGERS:
            yield problem(thing, "spec.managedBy", manager, f"write one of {', '.join(_MANAGERS)}, or remove it")


def deletion_conditions(objects: list[Object]) -> Problems:
    """A deletion rule has one condition, and the old form of the strategy none of the new (CEL rules)."""
    for job in of_kind(objects, "RayJob"):
        strategy = job["spec"].get("deletionStrategy", {})
        for index, rule in enumerate(strategy.get("deletionRules", [])):
            condition = rule.get("condition", {})
            if len({"jobStatus", "jobDeploymentStatus"} & condition.keys()) != 1:
                field = f"spec.deletionStrategy.deletionRules.{index}.condition"
                yield problem(job, field, condition, "give either jobStatus or jobDeploymentStatus")
        if "deletionRules" in strategy and {"onSuccess", "onFailure"} & strategy.keys():
            yield problem(job, "spec.deletionStrategy", sorted(strategy), "use deletionRules alone")


def shutdown(objects: list[Object]) -> Problems:
    """A time to live, or suspending, needs a cluster that is shut down in the end."""
    for job in of_kind(objects, "RayJob"):
        spec = job["spec"]
        if not spec.get("shutdownAfterJobFinishes"):
            for field in ("ttlSecondsAfterFinished", "suspend"):
                if spec.get(field):
                    yield problem(job, f"spec.{field}", spec[field], "set shutdownAfterJobFinishes: true")


def deletion_rules(objects: list[Object]) -> Problems:
    """Deletion rules stand alone, never delete an autoscaler's workers, and widen with time."""
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    for job in of_kind(objects, "RayJob"):
        spec, field = job["spec"], "spec.deletionStrategy.deletionRules"
        rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
        if rules and spec.get("shutdownAfterJobFinishes"):
            yield problem(job, field, rules, "remove it or shutdownAfterJobFinishes")
        lives: dict[tuple[object, object], dict[str, int]] = {}
        for rule in rules:
            condition, policy = rule["condition"], rule["policy"]
            alike = lives.setdefault((condition.get("jobStatus"), condition.get("jobDeploymentStatus")), {})
            if policy in alike:
                yield problem(job, field, rule, "two rules have this condition and policy; keep one")
            alike[policy] = condition.get("ttlSeconds", 0)
            if policy == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
                yield problem(job, field, policy, "the autoscaler owns the workers; delete the cluster instead")
        for alike in lives.values():
            times = [alike[policy] for policy in order if policy in alike]
            if any(later < sooner for sooner, later in pairwise(times)):
                yield problem(job, field, times, "delete workers first, then the cluster, then the job")


def auth_version(objects: list[Object]) -> Problems:
    """Tokens need a Ray version that has them, and it must be said; checking them by Kubernetes needs more."""
    for cluster in clusters(objects):
        options, version = cluster.spec.get("authOptions", {}), cluster.spec.get("rayVersion", "")
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        if options.get("mode") == "token" and numbers < (2, 52, 0):
            yield problem(
                cluster.owner, f"{cluster.path}.rayVersion", version, "tokens need 2.52.0 or newer, named here"
            )
        if options.get("enableK8sTokenAuth"):
            field = f"{cluster.path}.authOptions.enableK8sTokenAuth"
            if cluster.owner["kind"] != "RayCluster" or "secretName" in options or numbers < (2, 55, 0):
                yield problem(cluster.owner, field, True, "it is for RayClusters of 2.55.0 on, without secretName")


def start_params(objects: list[Object]) -> Problems:
    """Parameters of `ray start` are strings, their resources and labels belong to the group itself."""
    for cluster in clusters(objects):
        for path, group in cluster.groups:
            params = group.get("rayStartParams", {})
            for key, value in params.items():
                if not isinstance(value, str):
                    yield problem(cluster.owner, f"{path}.rayStartParams.{key}", value, "put it in quotes")
            both = {"num-cpus", "num-gpus", "memory", "resources"} & params.keys()
            if both and group.get("resources"):
                yield problem(
                    cluster.owner, f"{path}.resources", sorted(both), "name resources here or in rayStartParams"
                )
            if "labels" in params:
                yield problem(
                    cluster.owner, f"{path}.rayStartParams.labels", params["labels"], f"move it to {path}.labels"
                )


def replicas(objects: list[Object]) -> Problems:
    """0 <= min <= replicas <= max, and all three are given."""
    for cluster in clusters(objects):
        for path, group in cluster.groups[1:]:
            least, here, most = (group.get(key, -1) for key in ("minReplicas", "replicas", "maxReplicas"))
            if not 0 <= least <= here <= most:
                yield problem(
                    cluster.owner,
                    f"{path}.replicas",
                    (least, here, most),
                    "give 0 <= minReplicas <= replicas <= maxReplicas",
                )


def autoscaler_restart(objects: list[Object]) -> Problems:
    """The second autoscaler replaces pods itself."""
    for cluster in clusters(objects):
        if cluster.spec.get("autoscalerOptions", {}).get("version") == "v2":
            for path, group in cluster.groups:
                policy = group["template"]["spec"].get("restartPolicy", "Never")
                if policy != "Never":
                    field = f"{path}.template.spec.restartPolicy"
                    yield problem(cluster.owner, field, policy, "remove it: autoscaler v2 wants Never")


def redis(objects: list[Object]) -> Problems:
    """Redis is declared in one place, and only where it is wanted."""
    for cluster in clusters(objects):
        annotations = cluster.owner["metadata"].get("annotations", {})
        has_options = "gcsFaultToleranceOptions" in cluster.spec
        for path, group in cluster.groups:
            named = {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & env(group["template"]["spec"]["containers"][0]).keys()
            if named:
                field = f"{path}.template.spec.containers.0.env"
                yield problem(cluster.owner, field, sorted(named), "use gcsFaultToleranceOptions, or no Redis")
        if has_options and "ray.io/ft-enabled" in annotations:
            field = "metadata.annotations.ray.io/ft-enabled"
            yield problem(cluster.owner, field, annotations["ray.io/ft-enabled"], "gcsFaultToleranceOptions says it")


def job_modes(objects: list[Object]) -> Problems:
    """Some submission modes exclude other fields."""
    for job in of_kind(objects, "RayJob"):
        spec, mode = job["spec"], job["spec"].get("submissionMode")
        if mode == "SidecarMode":
            for field in sorted({"submitterPodTemplate", "submitterConfig", "clusterSelector"} & spec.keys()):
                yield problem(job, f"spec.{field}", spec[field], "SidecarMode has no submitter pod; remove it")
        if spec.get("backoffLimit", 0) > 0 and (mode == "InteractiveMode" or "clusterSelector" in spec):
            yield problem(job, "spec.backoffLimit", spec["backoffLimit"], "this kind of job cannot be retried; set 0")


def feature_gates(objects: list[Object]) -> Problems:
    """Nothing may need an alpha feature of the operator."""
    for cluster in clusters(objects):
        for field in _GATED:
            if field in cluster.spec:
                yield problem(
                    cluster.owner, f"{cluster.path}.{field}", cluster.spec[field], "off by default; remove it"
                )
        if (backend := cluster.spec.get("gcsFaultToleranceOptions", {}).get("backend")) == "rocksdb":
            field = f"{cluster.path}.gcsFaultToleranceOptions.backend"
            yield problem(cluster.owner, field, backend, "off by default; remove it")
    for thing in of_kind(objects, "RayCronJob"):
        yield problem(thing, "kind", "RayCronJob", "off by default; use a RayJob")


def request_over_limit(objects: list[Object]) -> Problems:
    """No request exceeds its limit."""
    for owner, path, resources in _resources(objects):
        limits = resources.get("limits", {})
        for key, asked in resources.get("requests", {}).items():
            if key in limits and quantity(asked) > quantity(limits[key]):
                yield problem(
                    owner, f"{path}.requests.{key}", asked, f"the limit is {limits[key]!r}; lower one, raise other"
                )


def memory_limits(objects: list[Object]) -> Problems:
    """Memory is asked for as it is limited: Ray sizes itself by the limit, and a node that has less kills the pod."""
    for owner, path, resources in _resources(objects):
        asked, limit = (resources.get(kind, {}).get("memory") for kind in ("requests", "limits"))
        if asked is None or asked != limit:
            yield problem(owner, f"{path}.memory", (asked, limit), "give request and limit, both the same")


def gpus(objects: list[Object]) -> Problems:
    """GPUs are called nvidia.com/gpu and asked for as they are limited."""
    for owner, path, resources in _resources(objects):
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for key in sorted({*requests, *limits}):
            if "/" in key and re.search("gpu|nvidia", key) and key != "nvidia.com/gpu":
                yield problem(owner, f"{path}.{key}", limits.get(key), "no node has it; write nvidia.com/gpu")
        if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
            both = (requests.get("nvidia.com/gpu"), limits.get("nvidia.com/gpu"))
            yield problem(owner, f"{path}.nvidia.com/gpu", both, "request and limit must be the same")


def _resources(objects: list[Object]) -> Iterator[tuple[Object, str, Object]]:
    for template in templates(objects):
        for path, container in template.containers:
            yield template.owner, f"{path}.resources", container.get("resources", {})
    for cluster in clusters(objects):
        if "autoscalerOptions" in cluster.spec:
            resources = cluster.spec["autoscalerOptions"].get("resources", {})
            yield cluster.owner, f"{cluster.path}.autoscalerOptions.resources", resources


def mounts(objects: list[Object]) -> Problems:
    """Every mount has a volume."""
    claimed = {
        claim["metadata"]["name"]
        for one in of_kind(objects, "StatefulSet")
        for claim in one["spec"]["volumeClaimTemplates"]
    }
    for template in templates(objects):
        known = {one["name"] for one in template.spec.get("volumes", [])}
        known |= claimed if template.owner["kind"] == "StatefulSet" else set()
        for path, container in template.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in known:
                    yield problem(
                        template.owner, f"{path}.volumeMounts", mount["name"], "declare a volume of this name"
                    )
    for cluster in clusters(objects):
        known = {one["name"] for one in cluster.spec["headGroupSpec"]["template"]["spec"].get("volumes", [])}
        for mount in cluster.spec.get("autoscalerOptions", {}).get("volumeMounts", []):
            if mount["name"] not in known:
                field = f"{cluster.path}.autoscalerOptions.volumeMounts"
                yield problem(cluster.owner, field, mount["name"], "declare a volume of this name for the head")


def references(objects: list[Object]) -> Problems:
    """Claims, ConfigMaps and accounts are rendered; Secrets, with these keys, stand in the example file."""
    have = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    secrets = example_secrets()
    for template in templates(objects):
        wanted = [("PersistentVolumeClaim", name) for name in template.claims()]
        wanted += [("ServiceAccount", template.spec.get("serviceAccountName", "default"))]
        for volume in template.spec.get("volumes", []):
            wanted += [("ConfigMap", volume["configMap"]["name"])] if "configMap" in volume else []
        for kind, name in wanted:
            if (kind, name) not in have:
                yield problem(template.owner, template.path, f"{kind}/{name}", "no such object is rendered")
        for path, container in template.containers:
            for name, key in _secret_keys(container):
                if name not in secrets or (key and key not in secrets[name]):
                    remedy = "add it to k8s/secrets.yaml.example"
                    yield problem(template.owner, f"{path}.env", f"Secret/{name} {key}".strip(), remedy)
    for cluster in clusters(objects):
        name = cluster.spec.get("authOptions", {}).get("secretName")
        if name and "auth_token" not in secrets.get(name, {}):
            field = f"{cluster.path}.authOptions.secretName"
            yield problem(
                cluster.owner, field, name, "k8s/secrets.yaml.example has no such Secret with the key auth_token"
            )


def _secret_keys(container: Object) -> Iterator[tuple[str, str]]:
    for one in container.get("envFrom", []):
        if "secretRef" in one:
            yield one["secretRef"]["name"], ""
    for one in container.get("env", []):
        if reference := one.get("valueFrom", {}).get("secretKeyRef"):
            yield reference["name"], reference["key"]


def example_secrets() -> dict[str, dict[str, str]]:
    """Return the Secrets that a lab fills in, by name and key."""
    text = (K8S / "secrets.yaml.example").read_text()
    return {one["metadata"]["name"]: one["stringData"] for one in yaml.safe_load_all(text)}


def ray_version(objects: list[Object]) -> Problems:
    """`rayVersion`, the image's tag and the lock file speak of one Ray."""
    locked = locked_version("ray")
    for cluster in clusters(objects):
        if (version := cluster.spec.get("rayVersion")) != locked:
            yield problem(cluster.owner, f"{cluster.path}.rayVersion", version, f"requirements.lock has {locked}")
        image = cluster.spec["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
        tag = re.search(r":[^:/@]*-ray([0-9.]+)(?=@|$)", image)
        if tag is None or tag[1] != locked:
            field = f"{cluster.path}.headGroupSpec.template.spec.containers.0.image"
            yield problem(cluster.owner, field, image, f"build the lock's Ray and name it in the tag: ...-ray{locked}")


def locked_version(package: str) -> str:
    """Return the version that requirements.lock has of a package."""
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def one_image(objects: list[Object]) -> Problems:
    """Head, workers and submitter run the same image: Ray refuses nodes of another version or Python."""
    for cluster in clusters(objects):
        head = cluster.spec["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
        for template, path, container in ray_containers([cluster.owner], "head", "worker", "submitter"):
            if container["image"] != head:
                yield problem(
                    template.owner, f"{path}.image", container["image"], f"the head has {head!r}; use one image"
                )


def retries(objects: list[Object]) -> Problems:
    """A sweep is retried when its head is lost, resumes by its name, and does not run or wait for ever."""
    for job in of_kind(objects, "RayJob"):
        spec = job["spec"]
        for field, least in (("backoffLimit", 1), ("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1)):
            if spec.get(field, 0) < least:
                yield problem(job, f"spec.{field}", spec.get(field), f"set it, to {least} or more")
        if not re.search(r"(^| )--(name|out)[ =]\S", spec.get("entrypoint", "")):
            yield problem(job, "spec.entrypoint", spec.get("entrypoint"), "give --name: a retry resumes by it")


def detection(objects: list[Object]) -> Problems:
    """A node that went silent is given up within ten seconds: so many checks time out, with a pause between two."""
    for template, path, container in ray_containers(objects, "head"):
        prefix, given = "RAY_health_check_", env(container)
        delay, period, timeout = (
            float(given.get(f"{prefix}{key}_ms") or default) / 1000
            for key, default in (("initial_delay", 5000), ("period", 3000), ("timeout", 10000))
        )
        checks = int(given.get(f"{prefix}failure_threshold") or 5)
        needed = checks * timeout + (checks - 1) * period
        if needed > _DETECTION_LIMIT_S or delay > _DETECTION_LIMIT_S:
            remedy = f"a lost node is noticed after {needed:g} s; lower period, timeout or threshold below 10 s"
            yield problem(template.owner, f"{path}.env.{prefix}*", (delay, period, timeout, checks), remedy)


def environment(objects: list[Object]) -> Problems:
    """Head and workers agree on where things are, and the places exist and can be written."""
    for template, path, container in ray_containers(objects, "head", "worker"):
        given = env(container)
        claims = {volume["name"] for volume in template.spec.get("volumes", []) if "persistentVolumeClaim" in volume}
        shared = [one["mountPath"] for one in container.get("volumeMounts", []) if one["name"] in claims]
        writable = [one["mountPath"] for one in container.get("volumeMounts", []) if not one.get("readOnly")]
        home, own = given.get("EEGVISION_HOME") or "", given.get("HOME") or ""
        if not any(home.startswith(f"{mount}/") for mount in shared):
            yield problem(template.owner, f"{path}.env.EEGVISION_HOME", home, f"put it on a shared volume: {shared}")
        if own not in writable:
            yield problem(template.owner, f"{path}.env.HOME", own, f"make it one of the mounted folders: {writable}")
        if not given.get("MLFLOW_TRACKING_URI"):
            yield problem(template.owner, f"{path}.env.MLFLOW_TRACKING_URI", None, "name the tracking server")
        if given.get("RAY_USAGE_STATS_ENABLED") != "0":
            used = given.get("RAY_USAGE_STATS_ENABLED")
            yield problem(
                template.owner, f"{path}.env.RAY_USAGE_STATS_ENABLED", used, "set '0': the lab's use is its own"
            )
        if template.role == "head" and float(given.get("TUNE_GLOBAL_CHECKPOINT_S") or "inf") > 10:
            every = given.get("TUNE_GLOBAL_CHECKPOINT_S")
            yield problem(
                template.owner, f"{path}.env.TUNE_GLOBAL_CHECKPOINT_S", every, "set '2': a lost driver repeats it"
            )


def shared_paths(objects: list[Object]) -> Problems:
    """What the head has on a shared volume, every worker finds at the same path, and under the same EEGVISION_HOME."""
    for cluster in clusters(objects):
        seen: dict[str, Any] = {}
        for template, path, container in ray_containers([cluster.owner], "head", "worker"):
            names_of = {
                one["name"]: one["persistentVolumeClaim"]["claimName"]
                for one in template.spec.get("volumes", [])
                if "persistentVolumeClaim" in one
            }
            mounted = [one for one in container.get("volumeMounts", []) if one["name"] in names_of]
            here = {one["mountPath"]: names_of[one["name"]] for one in mounted}
            here_too = {**here, "EEGVISION_HOME": env(container).get("EEGVISION_HOME")}
            seen = seen or here_too
            if here_too != seen:
                yield problem(template.owner, f"{path}.volumeMounts", here_too, f"the head has {seen}; mount the same")


def shared_claims(objects: list[Object]) -> Problems:
    """What Ray's pods mount can be mounted on all nodes at once."""
    wanted = {claim for one in templates(objects) if one.role in ("head", "worker") for claim in one.claims()}
    for claim in of_kind(objects, "PersistentVolumeClaim"):
        modes = claim["spec"]["accessModes"]
        if claim["metadata"]["name"] in wanted and modes != ["ReadWriteMany"]:
            yield problem(claim, "spec.accessModes", modes, "pods on several nodes share it: ReadWriteMany")


def queueing(objects: list[Object]) -> Problems:
    """Kueue admits a fixed set of pods: no autoscaler, at most 7 groups, a cluster that ends, a queue that exists."""
    queues = {one["metadata"]["name"] for one in of_kind(objects, "LocalQueue")}
    if queues:
        for cluster in clusters(objects):
            if cluster.spec.get("enableInTreeAutoscaling"):
                field = f"{cluster.path}.enableInTreeAutoscaling"
                yield problem(cluster.owner, field, True, "use the overlay `queue` or `autoscale`, never both")
    for thing in of_kind(objects, "RayJob", "RayCluster"):
        queue = thing["metadata"].get("labels", {}).get(QUEUE)
        if queue is None:
            continue
        if queue not in queues:
            yield problem(thing, f"metadata.labels.{QUEUE}", queue, "no LocalQueue of this name is rendered")
        if thing["kind"] == "RayJob" and not thing["spec"].get("shutdownAfterJobFinishes"):
            yield problem(thing, "spec.shutdownAfterJobFinishes", False, "Kueue needs true, or quota is never returned")
        if "clusterSelector" in thing["spec"]:
            yield problem(thing, "spec.clusterSelector", thing["spec"]["clusterSelector"], "Kueue cannot queue it")
        for cluster in clusters([thing]):
            groups = cluster.spec.get("workerGroupSpecs", [])
            if len(groups) > 7:
                yield problem(thing, f"{cluster.path}.workerGroupSpecs", len(groups), "Kueue takes 7 groups at most")
            for path, group in cluster.groups[1:]:
                if not group.get("minReplicas") == group.get("replicas") == group.get("maxReplicas"):
                    span = tuple(group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
                    yield problem(thing, f"{path}.replicas", span, "what is queued has one fixed size")


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        *(
            names,
            submission_mode,
            managed_by,
            deletion_conditions,
            shutdown,
            deletion_rules,
            auth_version,
            start_params,
        ),
        *(
            replicas,
            autoscaler_restart,
            redis,
            job_modes,
            feature_gates,
            request_over_limit,
            memory_limits,
            gpus,
            mounts,
        ),
        *(references, ray_version, one_image, retries, detection, environment, shared_paths, shared_claims, queueing),
        *SAFETY,
    )
}


def lint(objects: list[Object]) -> dict[str, list[str]]:
    """Return the problems that each rule finds; rules that find none are left out."""
    found = {name: list(rule(objects)) for name, rule in RULES.items()}
    return {name: problems for name, problems in found.items() if problems}
