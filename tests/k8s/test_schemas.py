"""k8s.schemas: what a strict server refuses is refused, and what it takes is taken."""

import copy

import pytest
import yaml
from jsonschema import Draft202012Validator

from k8s.rendered import overlay
from k8s.schemas import DATA, pack, problems, strict

FIELDS = {
    "type": "object",
    "required": ["a", "b"],
    "properties": {
        "a": {"type": "integer", "format": "int32", "default": 1},
        "b": {"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+m?$"},
        "c": {"type": "string", "nullable": True},
        "d": {"type": "object", "properties": {"e": {"type": "string"}}, "x-kubernetes-preserve-unknown-fields": True},
        "f": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def thing(kind):
    return next(copy.deepcopy(one) for one in overlay("lab") if one["kind"] == kind)


@pytest.mark.parametrize(
    "value", [{"b": 1}, {"b": "1m"}, {"b": 1, "c": None}, {"b": 1, "d": {"x": 1}}, {"b": 1, "f": {"x": "y"}}]
)
def test_what_a_server_takes(value):
    assert Draft202012Validator(strict(FIELDS)).is_valid(value)


@pytest.mark.parametrize(
    "value",
    [{}, {"b": 1.5}, {"b": "x"}, {"b": 1, "x": 1}, {"b": 1, "a": 2**31}, {"b": 1, "a": None}, {"b": 1, "f": {"x": 1}}],
)
def test_what_a_server_refuses(value):
    assert not Draft202012Validator(strict(FIELDS)).is_valid(value)


@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("RayJob", ("spec", "rayClusterSpec", "authOptions", "mode"), "tokn", "'tokn' is not one of"),
        ("RayJob", ("spec", "backoffLimits"), 2, "'backoffLimits' was unexpected"),
        (
            "RayJob",
            ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"),
            0,
            "is not of type 'string'",
        ),
        ("RayCluster", ("spec", "suspend"), "yes", "is not of type 'boolean'"),
        ("Deployment", ("spec", "template", "spec", "container"), [], "'container' was unexpected"),
        ("NetworkPolicy", ("spec", "ingres"), [], "'ingres' was unexpected"),
        ("Service", ("apiVersion",), "v2", "there is no schema for Service of 'v2'"),
        ("RayCluster", ("apiVersion",), "ray.io/v2", "there is no schema for RayCluster of 'ray.io/v2'"),
    ],
)
def test_a_mistake_in_a_manifest_is_found_and_named(kind, path, value, says):
    wrong = thing(kind)
    *above, last = path
    here = wrong
    for key in above:
        here = here[key]
    here[last] = value
    (problem,) = problems(wrong)
    assert problem.startswith(f"{kind}/")
    assert says in problem


def test_a_misspelt_field_of_a_kind_without_schema_is_found():
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": "x"}}
    assert problems(queue | {"spec": {"clusterQueue": "a"}}) == []
    assert problems(queue | {"spec": {"clusterqueue": "a"}}) == [
        "LocalQueue/x: spec: 'clusterQueue' is missing",
        "LocalQueue/x: spec: 'clusterqueue' is not a field that is known here",
    ]


def test_packing_gives_the_same_bytes_every_time(tmp_path):
    crd = tmp_path / "ray.io_things.yaml"
    versions = [{"name": "v1alpha1"}, {"name": "v1", "schema": {"openAPIV3Schema": FIELDS}}]
    crd.write_text(yaml.safe_dump({"spec": {"versions": versions}}))
    first = pack(crd, tmp_path).read_bytes()
    assert pack(crd, tmp_path).read_bytes() == first
    assert first[4:8] == b"\0\0\0\0", "gzip's time stamp"


def test_the_schemas_are_small_and_their_licence_is_named():
    files = sorted(DATA.glob("*.gz"))
    assert [file.name for file in files] == ["ray.io_rayclusters.v1.json.gz", "ray.io_rayjobs.v1.json.gz"]
    assert all(file.stat().st_size < 150_000 for file in files)
    assert "Apache License" in (DATA / "LICENSE").read_text()
    assert "v1.7.0" in (DATA / "README.md").read_text()
