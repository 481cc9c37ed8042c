"""Objects held against the schemas of Kubernetes 1.34 and of KubeRay's custom resources, as a strict API server does.

The server's CEL rules and the operator's own refusals are in no schema; they are in `k8s.rules`.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

DATA = Path(__file__).parent / "data"
_CORE = "kubernetes-json-schema/v1.34.0-local-strict"
_UNTYPED = ("nullable", "description", "default", "example")

# Kinds whose schemas neither Kubernetes nor KubeRay has, as far as the manifests use them: (required, allowed) of
# `spec`. Written from the projects' documentation, to catch misspelt fields; the servers' own schemas say more.
_OTHERS: dict[tuple[str, str], tuple[set[str], set[str]]] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): (
        {"selector", "podMetricsEndpoints"},
        {"jobLabel", "namespaceSelector", "podTargetLabels", "sampleLimit"},
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): ({"clusterQueue"}, {"stopPolicy"}),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): (
        {"resourceGroups", "namespaceSelector"},
        {"queueingStrategy", "preemption", "stopPolicy"},
    ),
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): (set(), {"nodeLabels", "nodeTaints", "tolerations", "topologyName"}),
}


def problems(thing: dict[str, Any]) -> list[str]:
    """Return what a strict API server would refuse in an object, each with the field and its value."""
    return list(_problems(json.dumps(thing, sort_keys=True)))


@functools.cache
def _problems(text: str) -> tuple[str, ...]:
    thing = json.loads(text)
    label = f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"
    if (key := (thing.get("apiVersion", ""), thing.get("kind", ""))) in _OTHERS:
        return tuple(f"{label}: {problem}" for problem in _other(thing.get("spec", {}), *_OTHERS[key]))
    try:
        validator = _validator(*key)
    except LookupError:
        return (f"{label}: there is no schema for {key[1]} of {key[0]!r}; correct it, or add one to k8s.schemas",)
    errors = sorted(validator.iter_errors(thing), key=lambda error: list(map(str, error.absolute_path)))
    return tuple(f"{label}: {_field(error)}: {error.message[:300]}" for error in errors)


def _other(spec: dict[str, Any], required: set[str], allowed: set[str]) -> Iterator[str]:
    for name in sorted(required - spec.keys()):
        yield f"spec: {name!r} is missing"
    for name in sorted(spec.keys() - required - allowed):
        yield f"spec: {name!r} is not a field that is known here"


def _field(error: jsonschema.ValidationError) -> str:
    return ".".join(map(str, error.absolute_path)) or "the object"


@functools.cache
def _validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    if api_version == "ray.io/v1":
        return jsonschema.Draft202012Validator(_ray_schema(kind))
    group, _, version = api_version.rpartition("/")
    prefix = f"{group.partition('.')[0]}-" if group else ""
    file = _core_folder() / f"{kind.lower()}-{prefix}{version}.json"
    if not file.is_file():
        raise LookupError(file)
    return jsonschema.Draft202012Validator(json.loads(file.read_text()), registry=_definitions())


def _core_folder() -> Path:
    return Path(str(resources.files("kubernetes_validate"))) / _CORE


@functools.cache
def _definitions() -> Registry:
    text = (_core_folder() / "_definitions.json").read_text()
    return Registry().with_resource("_definitions.json", Resource.from_contents(json.loads(text)))


def _ray_schema(kind: str) -> dict[str, Any]:
    file = DATA / f"ray.io_{kind.lower()}s.v1.json.gz"
    if not file.is_file():
        raise LookupError(file)
    schema = strict(json.loads(gzip.decompress(file.read_bytes())))
    schema["properties"] |= {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": kind},
        "metadata": {"type": "object", "required": ["name"]},
    }
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return schema


def strict(structural: Any) -> Any:
    """Turn the schema of a custom resource into a JSON Schema that refuses what a server with strict fields refuses.

    Kubernetes' extensions are spelt out, unknown fields are errors where the server would prune them, and what has a
    default is not required, since the server fills it in first. An explicit null is refused; a server drops it.
    """
    if not isinstance(structural, dict):
        return structural
    made: dict[str, Any] = {}
    for key, value in structural.items():
        if key in _UNTYPED or key.startswith("x-kubernetes-"):
            continue
        if key == "properties":
            made[key] = {name: strict(field) for name, field in value.items()}
        elif key in ("allOf", "anyOf", "oneOf"):
            made[key] = [strict(part) for part in value]
        elif key in ("items", "not", "additionalProperties"):
            made[key] = strict(value)
        else:
            made[key] = value
    fields = structural.get("properties", {})
    if "required" in made:
        made["required"] = [name for name in made["required"] if "default" not in fields.get(name, {})]
    if structural.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    bits = {"int32": 31, "int64": 63}.get(made.get("format", ""))
    if bits:
        del made["format"]
        made.setdefault("minimum", -(2**bits))
        made.setdefault("maximum", 2**bits - 1)
    if fields and "additionalProperties" not in made and not structural.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if structural.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


def pack(crd: Path, folder: Path = DATA) -> Path:
    """Store the v1 schema of a CRD file of KubeRay's repository as this module reads it; the same bytes every time."""
    definition = yaml.load(crd.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    text = json.dumps(version["schema"]["openAPIV3Schema"], separators=(",", ":"), sort_keys=True)
    target = folder / f"{crd.stem}.v1.json.gz"
    target.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    return target
