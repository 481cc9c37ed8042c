"""A lab's cluster on one machine: each pod of rendered manifests a host, started with the commands it would get.

In place of the kubelet: a container's command, environment, mounts and memory limit; services as names; Secrets drawn
for the occasion. In place of KubeRay: the pods that `k8s.pods` derives; a new cluster with the same entrypoint when a
job failed. The image is a copy of this checkout with the Python that runs the tests; PostgreSQL's is Debian's. Not
simulated: network policies, probes, users and the operator's status.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.hosts import Host, Network, network, until
from k8s.pods import Container, Object, Pod, head_service, pods, quantity, workload

ROOT = Path(__file__).resolve().parents[2]

_POSTGRES = Path("/usr/lib/postgresql")
# Two cores hold a few hosts, each with an object store of its own.
_OBJECT_STORE = 120_000_000
# What PostgreSQL's image does with an empty volume, then the server itself.
_START_POSTGRES = """
export PATH={bin}:$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb -U postgres --pwfile=<(echo "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 --auth-local=trust -N >/dev/null
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  pg_ctl -w start -o "-c listen_addresses='' -F" -l /tmp/ray/init.log
  for script in /docker-entrypoint-initdb.d/*.sh; do /bin/bash "$script"; done
  pg_ctl -w stop -m fast
fi
exec postgres -F -c listen_addresses='*'
"""


def postgres_folder() -> Path | None:
    """Return where PostgreSQL's programs are, if the machine has them."""
    found = sorted(_POSTGRES.glob("*/bin/initdb"))
    return found[-1].parent if found else None


def drawn_secrets() -> dict[str, dict[str, str]]:
    """Return values for all Secrets that `k8s/secrets.yaml.example` asks for."""
    example = (ROOT / "k8s" / "secrets.yaml.example").read_text()
    asked = [one for one in yaml.safe_load_all(example) if one]
    return {
        one["metadata"]["name"]: {
            key: secrets.token_hex(16) if value == "CHANGE-ME" else value for key, value in one["stringData"].items()
        }
        for one in asked
    }


@dataclass(eq=False)
class RayCluster:
    """The pods of one attempt of a RayJob."""

    head: Host
    workers: list[Host]
    submitters: list[tuple[Host, subprocess.Popen[bytes]]] = field(default_factory=list)

    def said(self) -> str:
        """Return what all submitters printed, the job's own words among it."""
        return "".join(
            path.read_text(errors="replace") for host, _ in self.submitters for path in host.folder.glob("*.log")
        )

    def kill(self) -> None:
        """Kill all pods, as deleting the cluster does in the end."""
        for host in (self.head, *self.workers, *(host for host, _ in self.submitters)):
            host.kill()


@dataclass(eq=False)
class Lab:
    """Rendered manifests, come alive."""

    net: Network
    objects: list[Object]
    secrets: dict[str, dict[str, str]]
    folder: Path
    _claims: dict[str, Path] = field(default_factory=dict)
    _n_clusters: int = 0

    @property
    def shared(self) -> Path:
        """The volume that all Ray pods share."""
        return self.claim("eeg-shared")

    def claim(self, name: str) -> Path:
        """Return the folder behind a PersistentVolumeClaim."""
        if name not in self._claims:
            self._claims[name] = self.folder / "volumes" / name
            self._claims[name].mkdir(parents=True, exist_ok=True)
        return self._claims[name]

    def start_postgres(self) -> Host:
        """Start the StatefulSet, and wait until it takes connections."""
        pod = workload(self.objects, "StatefulSet", "postgres", secrets=self.secrets)
        host = self.net.host("postgres-0", [*_service_names("postgres")])
        found = postgres_folder()
        assert found is not None
        command = _START_POSTGRES.format(bin=found)
        self.run(host, pod.containers[0], command=command, user="postgres")
        until(
            "PostgreSQL takes connections", lambda: "ready to accept connections" in host.log("postgres"), timeout_s=60
        )
        return host

    def start_mlflow(self) -> Host:
        """Start the tracking server (or start it anew), and wait until it answers; make the Ray pods' account."""
        pod = workload(self.objects, "Deployment", "mlflow", secrets=self.secrets)
        host = self.net.host("mlflow-0", [*_service_names("mlflow")])
        for container in pod.init:
            self._finish(host, container)
        self.serve_mlflow(host)
        account = workload(self.objects, "Job", "mlflow-user", secrets=self.secrets)
        self._finish(host, account.containers[0])
        return host

    def serve_mlflow(self, host: Host) -> None:
        """Start the server's own container, and wait until it is healthy."""
        pod = workload(self.objects, "Deployment", "mlflow", secrets=self.secrets)
        self.run(host, pod.containers[0])
        until("MLflow is healthy", lambda: self.curl(host, "http://localhost:5000/health")[0] == 200, timeout_s=120)

    def start_job(self, name: str) -> RayCluster:
        """Start head, workers and submitter of a RayJob, as the operator does for each attempt."""
        self._n_clusters += 1
        made = self._pods(name)
        (head_pod,) = [pod for pod in made if pod.role == "head"]
        (submitter_pod,) = [pod for pod in made if pod.role == "submitter"]
        service = head_service(f"{name}-{self._n_clusters:05}", _namespace(self.objects))
        head = self.net.host(head_pod.name, _service_aliases(service))
        self.run(head, head_pod.containers[0])
        workers = [self.start_worker(pod) for pod in made if pod.role == "worker"]
        cluster = RayCluster(head=head, workers=workers)
        self._submit(cluster, submitter_pod)
        return cluster

    def resubmit(self, name: str, cluster: RayCluster) -> None:
        """Start another submitter, as the Kubernetes Job does for a lost one."""
        self._submit(cluster, next(pod for pod in self._pods(name) if pod.role == "submitter"))

    def _submit(self, cluster: RayCluster, pod: Pod) -> None:
        number = sum(host.name.startswith(pod.name) for host in self.net.hosts)
        host = self.net.host(f"{pod.name}-{number}")
        cluster.submitters.append((host, self.run(host, pod.containers[0])))

    def start_worker(self, pod: Pod) -> Host:
        """Start a worker: what waits for the head, then Ray; under a name of its own, as every new pod has one."""
        n_before = sum(host.name.startswith(pod.name) for host in self.net.hosts)
        host = self.net.host(f"{pod.name}-{n_before}" if n_before else pod.name)
        waits = " && ".join(f"({container.command})" for container in pod.init).replace("sleep 5", "sleep 1")
        main = pod.containers[0]
        self.run(host, main, command=f"{waits} && {main.command}")
        return host

    def replace_worker(self, name: str, cluster: RayCluster) -> Host:
        """Start one more worker of the job's running cluster, as the operator does for a lost one."""
        cluster.workers.append(self.start_worker(next(pod for pod in self._pods(name) if pod.role == "worker")))
        return cluster.workers[-1]

    def _pods(self, name: str) -> list[Pod]:
        cluster = f"{name}-{self._n_clusters:05}"
        return pods(self.objects, name, secrets=self.secrets, cluster=cluster, submission=cluster)

    def run(
        self, host: Host, container: Container, *, command: str | None = None, user: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a container on a host."""
        text = re.sub(
            r"\bray start\b", f"ray start --object-store-memory={_OBJECT_STORE}", command or container.command
        )
        memory = int(quantity(container.limits["memory"])) if "memory" in container.limits else None
        return host.start(
            text,
            log=container.name,
            env=self._environment(container),
            cwd=self.folder / "image",
            mounts=self._mounts(host, container, user),
            memory_bytes=memory,
            user=user,
        )

    def _finish(self, host: Host, container: Container) -> None:
        code = self.run(host, container).wait(180)
        assert code == 0, host.log(container.name)

    def _environment(self, container: Container) -> dict[str, str]:
        own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LANG": "C.UTF-8"}
        # Stands in for the image: the package from this checkout, and arithmetic that does not use all cores at once.
        own |= {"TMPDIR": "/tmp/ray", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder / "image" / "platform")}
        return own | dict(container.env)

    def _mounts(self, host: Host, container: Container, user: str | None) -> dict[str, Path]:
        mounts: dict[str, Path] = {}
        for mount in container.mounts:
            kind = next(iter(mount.source), "claim")
            if mount.path == "/dev/shm":
                continue
            # /tmp itself may hold this checkout, and does hold the other volumes.
            path = "/tmp/ray" if mount.path in ("/tmp", "/tmp/ray") else mount.path
            if mount.claim is not None:
                mounts[path] = self.claim(mount.claim)
            elif kind == "configMap":
                mounts[path] = self._config_map(mount.source["configMap"]["name"])
            elif kind == "emptyDir":
                mounts[path] = host.folder / "volumes" / mount.volume
            else:  # of a StatefulSet's template
                mounts[path] = self.claim(f"{mount.volume}-{host.name}")
            mounts[path].mkdir(parents=True, exist_ok=True)
            if user is not None and kind != "configMap":
                shutil.chown(mounts[path], user, user)
        return mounts

    def _config_map(self, name: str) -> Path:
        data = next(one for one in self.objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name)
        folder = self.folder / "configmaps" / name
        folder.mkdir(parents=True, exist_ok=True)
        for key, text in data["data"].items():
            (folder / key).write_text(text)
        return folder

    def curl(self, host: Host, url: str, *flags: str) -> tuple[int, str]:
        """Ask for a page from a host; the status is 0 where nobody answers."""
        command = ["curl", "-sS", "--max-time", "5", "-w", "\n%{http_code}", *flags, url]
        argv = ["ip", "netns", "exec", host.space, *command]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        text, _, code = done.stdout.rpartition("\n")
        return int(code or 0), text

    def ray(self, cluster: RayCluster, path: str) -> Any:
        """Return what the head's dashboard answers to who has the token; None where it does not."""
        token = self.secrets["ray-token"]["auth_token"]
        url = f"http://localhost:8265{path}"
        code, text = self.curl(cluster.head, url, "-H", f"Authorization: Bearer {token}")
        return json.loads(text) if code == 200 else None

    def nodes_alive(self, cluster: RayCluster) -> int | None:
        """Return how many nodes the head takes for alive, itself included."""
        answer = self.ray(cluster, "/api/v0/nodes")
        return answer and sum(node["state"] == "ALIVE" for node in answer["data"]["result"]["result"])

    def mlflow(self, host: Host, what: str, asked: Mapping[str, Any]) -> Any:
        """Return what MLflow answers to the account of the Ray pods."""
        account = self.secrets["mlflow-client"]
        login = f"{account['MLFLOW_TRACKING_USERNAME']}:{account['MLFLOW_TRACKING_PASSWORD']}"
        url = f"http://mlflow:5000/api/2.0/mlflow/{what}"
        code, text = self.curl(host, url, "-u", login, "--json", json.dumps(asked))
        assert code == 200, (code, text)
        return json.loads(text)


def _namespace(objects: list[Object]) -> str:
    return next(one["metadata"]["name"] for one in objects if one["kind"] == "Namespace")


def _service_names(name: str) -> Iterator[str]:
    yield name
    yield from _service_aliases(f"{name}.eegvision.svc.cluster.local")


def _service_aliases(full: str) -> list[str]:
    parts = full.split(".")
    return [".".join(parts[:count]) for count in (3, 5)]


@contextmanager
def lab(objects: list[Object], folder: Path) -> Iterator[Lab]:
    """Make a lab without any pod running yet; all that ran in it ends with it."""
    for name in ("platform", "jobs", "search_spaces"):
        shutil.copytree(ROOT / name, folder / "image" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with network(folder / "hosts") as net:
        yield Lab(net=net, objects=objects, secrets=drawn_secrets(), folder=folder)
