"""eegvision.cluster and preflight without a cluster: which ones are refused, with what words, and which nodes fit."""

import http.server
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray

from eegvision import cluster, preflight
from eegvision.preflight import Node
from eegvision.vocab import InputError, TryAgainError


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A dashboard that answers every request with a status; yields its HOST:PORT."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/version" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def head(monkeypatch, tmp_path, request) -> Iterator[str]:
    """A port that is listened on, as RAY_ADDRESS; what `ray.init` finds there is up to the test."""
    request.getfixturevalue("no_token")
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv(cluster.ALLOW_OPEN, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address


@pytest.mark.usefixtures("no_token")
@pytest.mark.parametrize(("status", "expected"), [(200, True), (401, False), (403, False), (404, True)])
def test_a_cluster_that_answers_without_a_token_is_open(status, expected):
    with answering(status) as dashboard:
        assert cluster.is_open(dashboard) == expected


@pytest.mark.usefixtures("no_token")
def test_without_an_answer_only_a_token_can_have_been_demanded(monkeypatch, tmp_path):
    with answering(500) as broken:
        for dashboard in ("", "127.0.0.1:9", broken):
            assert cluster.is_open(dashboard)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        assert not cluster.is_open(broken)


def test_an_open_cluster_is_left_again_unless_that_is_allowed(head, monkeypatch):
    left = []
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    with answering(200) as dashboard:
        monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(address_info={"webui_url": dashboard}))
        with pytest.raises(InputError, match=rf"{head} takes jobs from anybody \({dashboard}\).*RAY_AUTH_MODE=token"):
            cluster.connect()
        assert left == [True]
        monkeypatch.setenv("EEGVISION_ALLOW_OPEN", "1")
        cluster.connect()
    monkeypatch.delenv("EEGVISION_ALLOW_OPEN")
    with answering(401) as dashboard:
        monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(address_info={"webui_url": dashboard}))
        cluster.connect()
    assert left == [True]


@pytest.mark.usefixtures("head")
def test_workers_are_told_where_runs_lie_and_how_to_log(monkeypatch, tmp_path):
    given = {}

    def init(**options: object) -> SimpleNamespace:
        given.update(options)
        return SimpleNamespace(address_info={})

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token")
    cluster.connect()
    assert given["runtime_env"] == {"env_vars": {"EEGVISION_HOME": str(tmp_path)}}
    monkeypatch.setattr(cluster.telemetry, "set_up_logs", lambda: None)
    monkeypatch.setenv("EEGVISION_LOG", "json")
    cluster.connect()
    assert given["runtime_env"] == {
        "env_vars": {"EEGVISION_HOME": str(tmp_path), "EEGVISION_LOG": "json"},
        "worker_process_setup_hook": "eegvision.telemetry.set_up_logs",
    }


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ray.exceptions.AuthenticationError("no token"), r"needs a token, and there is none here.*RAY_AUTH_TOKEN_PATH"),
        (ConnectionError("Failed to connect"), r"does not let this job in.*RAY_AUTH_MODE=token"),
        (RuntimeError("Version mismatch: Ray: 2.60.0\n Ray: 2.54.0"), r"cannot be joined: .*2\.60\.0 Ray: 2\.54\.0"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_named_with_the_remedy(head, monkeypatch, error, said):
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=f"{head}.*{said}"):
        cluster.connect()


@pytest.mark.usefixtures("head")
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "HOST:PORT of its head.*ray job submit --address"),
        ("ray://127.0.0.1:10001", "HOST:PORT of its head"),
        ("6379", "HOST:PORT of its head"),
        ("127.0.0.1:9", "no cluster answers at RAY_ADDRESS=127.0.0.1:9.*unset RAY_ADDRESS"),
    ],
)
def test_an_address_where_no_cluster_can_be_is_refused_at_once(monkeypatch, address, said):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("asked Ray, which waits for minutes"))
    with pytest.raises(InputError, match=said):
        cluster.connect()


@pytest.mark.usefixtures("head")
def test_what_ray_changes_of_this_process_is_as_before_even_if_it_fails(monkeypatch):
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise RuntimeError("no room for Ray")

    def ours(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", init)
    mask, before = os.umask(0o022), signal.signal(signal.SIGTERM, ours)
    try:
        for _ in range(2):  # joining a cluster, then starting one
            with pytest.raises(RuntimeError, match="no room"):
                cluster.connect()
            assert signal.getsignal(signal.SIGTERM) is ours
            assert os.umask(0o022) == 0o022
            monkeypatch.delenv("RAY_ADDRESS", raising=False)
    finally:
        os.umask(mask)
        signal.signal(signal.SIGTERM, before)


HERE = Node(
    name="driver",
    versions={"eegvision": "aaaa", "python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "numpy": "2.4.6"},
    storage="",
    free_gib=100.0,
    resources={"CPU": 8.0, "GPU": 2.0, "memory": 64 * 2.0**30, "object_store_memory": 16 * 2.0**30},
    gpus=2,
    shm_gib=32.0,
    clock_s=1000.0,
)


def test_nodes_that_are_alike_fit():
    assert preflight.faults(HERE, [HERE, replace(HERE, name="b", gpus=4)]) == []
    assert preflight.remarks(HERE, [HERE, replace(HERE, name="b", clock_s=1030.0)]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": HERE.versions | {"eegvision": "bbbb"}}, r"node b runs eegvision bbbb, the driver aaaa; .*image"),
        ({"versions": HERE.versions | {"torch": "2.13.0"}}, r"node b runs torch 2\.13\.0, the driver 2\.14\.1; .*lock"),
        ({"storage": "there is no /mnt/shared"}, r"node b: there is no /mnt/shared; EEGVISION_HOME must be one shared"),
        ({"gpus": 1}, r"node b: Ray promises 2 GPUs, torch can use 1; .*nvidia-smi"),
    ],
)
def test_a_node_that_does_not_fit_is_named_with_both_values_and_the_remedy(change, said):
    found = preflight.faults(HERE, [HERE, replace(HERE, name="b", **change)])
    assert len(found) == 1
    with pytest.raises(InputError, match=said):
        raise InputError(found[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"free_gib": 0.5}, "0.5 GiB are free"),
        ({"clock_s": 700.0}, "differs from the driver's by 300 s"),
        ({"shm_gib": 0.06}, "/dev/shm holds 0.1 GiB, less than the 16.0 GiB"),
        ({"resources": HERE.resources | {"object_store_memory": 2.0**30}}, "1.0 of 65.0 GiB"),
    ],
)
def test_what_only_deserves_a_look_is_said_and_stops_nothing(change, said):
    node = replace(HERE, name="b", **change)
    assert preflight.faults(HERE, [node]) == []
    assert [said in remark for remark in preflight.remarks(HERE, [node])] == [True]


def test_a_node_that_sees_another_folder_or_may_not_write_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "home"))
    with preflight.mark() as marked:
        assert preflight.look(marked).storage == ""
        assert [path.name for path in marked.parent.iterdir()] == [marked.name]  # nothing of its own stays
        marked.write_text("of another run")
        assert "something else" in preflight.look(marked).storage
    assert "another folder of that name" in preflight.look(marked).storage
    assert list(marked.parent.iterdir()) == []
    assert "there is no" in preflight.look(tmp_path / "unmounted" / marked.name).storage
    monkeypatch.setenv("EEGVISION_HOME", "/proc/nowhere")
    with (
        pytest.raises(InputError, match=r"EEGVISION_HOME is /proc/nowhere, and .* cannot write there"),
        preflight.mark(),
    ):
        pass


def test_the_code_of_a_node_is_that_of_its_files():
    assert preflight.code() == preflight.versions()["eegvision"]
    assert len(preflight.code()) == 12


@pytest.mark.parametrize("n_looks", [3, None])
def test_a_joined_cluster_is_given_time_until_its_machines_are_there(monkeypatch, n_looks):
    looks, now, lines = 0, 0.0, []

    def size() -> tuple[float, float]:
        nonlocal looks
        looks += 1
        return (4.0, 0.0) if looks == n_looks else (0.0, 0.0)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(cluster, "check_nodes", lambda: ["node a is slow"])
    monkeypatch.setattr(cluster, "size", size)
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("time.sleep", sleep)
    if n_looks is None:
        with pytest.raises(TryAgainError, match=r"^no machine with CPUs or GPUs has joined the cluster for 10 minutes"):
            cluster.enter(lines.append)
    else:
        cluster.enter(lines.append)
        assert lines[1:] == ["note: node a is slow"]
    assert lines[0] == "waiting for machines: the cluster has no CPUs and no GPUs yet"
