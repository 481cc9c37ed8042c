"""What many tests share: a home of their own, one small data set, one local Ray for the whole session."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from eegvision.ingest import assemble, simulate
from eegvision.ingest.places import place

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Tests with Ray are the longest chain, so what runs beside them may wait.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray spells it so)


def pytest_configure(config: pytest.Config) -> None:
    # Ray 2.60 warns of its own defaults when it makes a DataContext.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:ray.data.context")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that need Ray, the longest chain, and with the simulated pods, the next."""
    first = {"ray": 0, "cluster": 1}
    items.sort(key=lambda item: first.get(item.nodeid.split("/")[1], 2))


class _Chains(LoadScopeScheduling):
    """Keeps in one process what shares something costly: a file's tests, and all that share a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        folder = file.split("/")[1]
        return folder if folder in ("ray", "cluster") else file


# Not by marks and `--dist loadgroup`: pytest 9.2 gives tests no name that xdist 3.8 could write a group into.
@pytest.hookimpl(optionalhook=True)  # there is none without xdist, as for one test alone
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Chains(config, log)


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder as `EEGVISION_HOME`; set before Ray starts, so that its workers see it too."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("EEGVISION_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def tiny_dataset(session_home: Path) -> Path:
    """The data set `tiny`: 160 simulated segments (16 channels x 88 samples) of 2 subjects, 40 images of 5 classes."""
    root = session_home / "datasets" / "tiny"
    assemble.write(root, simulate.simulate(simulate.PRESETS["tiny"], "tiny"), rows_per_shard=100)
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Path, session_home: Path) -> Path:
    """The run `tiny-run`: a joint model (TSConv, small CNN at 32 px) trained on `tiny` for three passes."""
    from eegvision import distributed, trials
    from eegvision.config import RunConfig

    assert tiny_dataset.name == "tiny"
    config = RunConfig().with_overrides(
        {
            "data.dataset": "tiny",
            "data.val_fraction": 0.25,
            "data.test_fraction": 0.25,
            "eeg.encoder": "tsconv",
            "eeg.embed_dim": 16,
            "image.embed_dim": 16,
            "image.size_px": 32,
            "loss.name": "info_nce",
            "train.max_passes": 3,
            "train.batch_size": 16,
        }
    )
    run = session_home / "runs" / "tiny-run"
    own = run / "trials" / "tiny-run-001"
    own.mkdir(parents=True)
    (own / "trial.json").write_text(json.dumps({"number": 1, "suggested": {}, "fingerprint": config.fingerprint()}))
    distributed.fit_here(config, own, lambda _: None, cpus=1.0)
    trials.write_end(own, "finished")
    (run / "best.json").write_text(json.dumps({"trial": own.name, "number": 1}))
    return run


@pytest.fixture(scope="session")
def ray_local(session_home: Path) -> Iterator[Any]:
    """A Ray of our own with two CPUs, never a cluster that happens to run here."""
    import ray

    assert os.environ["EEGVISION_HOME"] == str(session_home)  # Ray's processes have the environment of this moment
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps in this process save none of their figures, which take longer than their trainings."""

    def save(_drawn: Any, path: Path, *_words: Any, **_more: Any) -> list[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        return []

    monkeypatch.setattr("eegvision.report.style.save", save)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code does where no Ray is connected, whether or not another test has started one."""
    monkeypatch.setattr("eegvision.cluster.is_connected", lambda: False)


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Address of an empty folder in a bucket of an S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        place(f"s3://lab?{options}&allow_bucket_creation=true").filesystem.create_dir("lab")
        yield f"s3://lab/eeg?{options}"
    server.stop()
