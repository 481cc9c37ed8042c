"""Ways into rendered objects that all rules share: clusters, groups of pods, pod templates, and how a problem reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster part of a RayCluster or RayJob: `spec` and where it lies."""

    owner: Object
    path: str
    spec: Object

    @property
    def groups(self) -> list[tuple[str, Object]]:
        """Head and worker groups, each with its path."""
        workers = self.spec.get("workerGroupSpecs", [])
        return [
            (f"{self.path}.headGroupSpec", self.spec.get("headGroupSpec", {})),
            *((f"{self.path}.workerGroupSpecs.{index}", group) for index, group in enumerate(workers)),
        ]


@dataclass(frozen=True, kw_only=True)
class Template:
    """The pods that an object stands for: `spec` is a pod's, `role` is head, worker, submitter or none of Ray's."""

    owner: Object
    path: str
    spec: Object
    labels: Object
    role: str = ""

    @property
    def containers(self) -> list[tuple[str, Object]]:
        """All containers, init containers too, each with its path."""
        return [
            (f"{self.path}.{kind}.{index}", container)
            for kind in ("initContainers", "containers")
            for index, container in enumerate(self.spec.get(kind, []))
        ]

    def claims(self) -> list[str]:
        """Return the names of the claims it mounts."""
        volumes = self.spec.get("volumes", [])
        return [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]


def problem(thing: Object, field: str, value: object, remedy: str) -> str:
    """Say what is wrong: which object, which field, what stands there, what to do."""
    return f"{label(thing)}: {field} is {value!r}; {remedy}"


def label(thing: Object) -> str:
    """Return `Kind/name`."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    """Return the objects of these kinds."""
    return [thing for thing in objects if thing["kind"] in kinds]


def clusters(objects: Iterable[Object]) -> Iterator[Cluster]:
    """Yield the clusters of all RayClusters and RayJobs."""
    for thing in objects:
        if thing["kind"] == "RayCluster":
            yield Cluster(owner=thing, path="spec", spec=thing["spec"])
        elif thing["kind"] == "RayJob" and "rayClusterSpec" in thing["spec"]:
            yield Cluster(owner=thing, path="spec.rayClusterSpec", spec=thing["spec"]["rayClusterSpec"])


def templates(objects: Iterable[Object]) -> Iterator[Template]:
    """Yield everything that pods are made from; of a pod itself, the pod."""
    objects = list(objects)
    for thing in objects:
        if thing["kind"] == "Pod":
            yield Template(owner=thing, path="spec", spec=thing["spec"], labels=thing["metadata"].get("labels", {}))
        elif thing["kind"] in _WORKLOADS:
            yield _template(thing, "spec.template", thing["spec"]["template"])
        elif thing["kind"] == "RayJob" and "submitterPodTemplate" in thing["spec"]:
            yield _template(thing, "spec.submitterPodTemplate", thing["spec"]["submitterPodTemplate"], "submitter")
    for cluster in clusters(objects):
        for path, group in cluster.groups:
            if "template" in group:
                role = "head" if path.endswith("headGroupSpec") else "worker"
                yield _template(cluster.owner, f"{path}.template", group["template"], role)


def _template(owner: Object, path: str, template: Object, role: str = "") -> Template:
    labels = dict(template.get("metadata", {}).get("labels", {}))
    if role in ("head", "worker"):
        labels |= {"ray.io/is-ray-node": "yes", "ray.io/node-type": role}
    elif role == "submitter":
        labels |= {"ray.io/originated-from-crd": "RayJob"}
    return Template(owner=owner, path=f"{path}.spec", spec=template["spec"], labels=labels, role=role)


def ray_containers(objects: Iterable[Object], *roles: str) -> Iterator[tuple[Template, str, Object]]:
    """Yield the Ray container, always the first one, of each template with one of these roles."""
    for template in templates(objects):
        if template.role in roles:
            yield template, f"{template.path}.containers.0", template.spec["containers"][0]


def env(container: Object) -> dict[str, str | None]:
    """Return the variables of a container; None where the value comes from elsewhere."""
    return {one["name"]: one.get("value") for one in container.get("env", [])}
