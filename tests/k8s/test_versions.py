"""One Ray, one Python, one image: manifests, Dockerfile, lock file and pyproject agree."""

import re
import tomllib

import pytest

from k8s.manifests import clusters, templates
from k8s.rendered import K8S, ROOT, overlay, overlays
from k8s.rules import locked_version

DOCKERFILE = (K8S / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def argument(name):
    """Return the default of a build argument."""
    (value,) = re.findall(rf"^ARG {name}=(\S+)$", DOCKERFILE, re.MULTILINE)
    return value


def test_the_dockerfile_builds_the_locks_ray_and_checks_it():
    assert argument("RAY_VERSION") == locked_version("ray")
    assert f":{locked_version('ray')}-" in argument("BASE")
    assert "assert ray.__version__ == '${RAY_VERSION}'" in DOCKERFILE


def test_the_dockerfile_has_the_locks_python():
    assert "py311" in argument("BASE")
    assert "sys.version_info[:2] == (3, 11)" in DOCKERFILE
    assert PROJECT["requires-python"] == ">=3.11"
    assert "--python-version 3.11" in (ROOT / "Makefile").read_text(), "the lock is resolved for it"


@pytest.mark.parametrize("name", overlays())
def test_all_clusters_run_the_locks_ray(name):
    for cluster in clusters(overlay(name)):
        assert cluster.spec["rayVersion"] == locked_version("ray")


@pytest.mark.parametrize("name", overlays())
def test_our_image_is_tagged_with_our_version_and_rays(name):
    tags = {
        container["image"].partition("@")[0].rpartition(":")[2]
        for template in templates(overlay(name))
        for _, container in template.containers
        if "eegvision" in container["image"]
    }
    assert tags == {f"{PROJECT['version']}-ray{locked_version('ray')}"}


def test_every_package_of_the_image_is_checked_against_a_hash():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [line for line in lines if re.match(r"[A-Za-z0-9]", line)]
    assert len(pinned) > 100
    assert [line for line in pinned if not re.match(r"[\w.\-]+(\[[\w,]+\])?==\S+( ;.*)? \\$", line)] == []
    installs = re.findall(r"pip install .*", DOCKERFILE)
    assert len(installs) == 2
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]


def test_the_tracking_server_of_the_image_is_locked():
    assert locked_version("mlflow").startswith("3.17.")
    for package in ("psycopg", "boto3", "flask-wtf"):
        assert locked_version(package)
    assert len(PROJECT["optional-dependencies"]["server"]) == 3


def test_the_dockerfile_copies_what_jobs_need_and_the_ignore_file_lets_it():
    copied = {
        word
        for line in re.findall(r"^COPY --chown=1000:100 (.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert {"platform", "jobs", "search_spaces", "requirements.lock", "pyproject.toml"} <= copied
    assert all((ROOT / word).exists() for word in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    workdir = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)
    assert workdir == ["/opt/eegvision"]
    assert "COPY --chown=1000:100 jobs jobs" in DOCKERFILE


@pytest.mark.parametrize("name", overlays())
def test_pods_run_as_the_images_user(name):
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:100"
    users = {
        (template.spec["securityContext"]["runAsUser"], template.spec["securityContext"]["runAsGroup"])
        for template in templates(overlay(name))
        if any("eegvision" in container["image"] for _, container in template.containers)
    }
    assert users == {(1000, 100)}
