"""What strangers cannot do and what leaves no run: pinned versions, a guarded MLflow, tokens, subjects' names."""

import ast
import base64
import json
import re
import sqlite3
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import mlflow_servers
from eegvision import distributed, pseudonyms, readiness, tracking, trials
from eegvision.assess import record
from eegvision.assess.scores import Question
from eegvision.config import RunConfig
from eegvision.ingest import assemble, simulate
from eegvision.overrides import flatten
from eegvision.report.study_page import study_page
from eegvision.tracking import Tracker
from eegvision.vocab import Segment

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
# Below these versions are holes that are known: ray CVE-2026-27482, -2025-62593, -2025-34351; mlflow CVE-2026-2033,
# -2393, -2614, -2651, -4137; torch CVE-2025-32434; pillow: decompression bombs in some formats.
FLOORS = {"ray": (2, 54), "mlflow": (3, 17, 2), "torch": (2, 6), "pillow": (11, 3)}
PASSWORD = "correct-horse-battery"
MARKER = "MARKER-jane"


def test_every_locked_file_has_a_hash():
    entries = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert len(entries) > 100
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("package", FLOORS)
def test_no_locked_version_has_a_known_hole(package):
    found = re.findall(rf"(?m)^{package}(?:\[[^]]*\])?==([0-9.]+)", LOCK)
    assert found
    for version in found:
        assert tuple(map(int, version.split("."))) >= FLOORS[package]


def test_nothing_is_installed_while_a_job_runs():
    # Ray installs what a runtime environment lists under these keys, without the hashes of the lock.
    for path in [*(ROOT / "platform").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                assert not {"pip", "uv", "conda", "image_uri"} & keys, f"{path}:{node.lineno}"


@dataclass(frozen=True)
class Guarded:
    """A server as the cluster runs it: with logins, and a list of the host names it takes."""

    address: str

    def ask(self, path: str, *, login: bool = True, host: str | None = None, send: object = None) -> int:
        request = urllib.request.Request(self.address + path, data=None if send is None else json.dumps(send).encode())
        request.add_header("Content-Type", "application/json")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(f'admin:{PASSWORD}'.encode()).decode()}")
        if host:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder, port = tmp_path_factory.mktemp("server"), mlflow_servers.free_port()
    (folder / "basic_auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
    }
    flags = ("--app-name=basic-auth", f"--allowed-hosts=127.0.0.1:{port}")
    with mlflow_servers.running(folder, port, *flags, env=env) as address:
        yield Guarded(address)


API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


def test_mlflow_lets_nobody_in_without_a_login_or_by_another_name(guarded):
    for path in ("/", f"{API}/experiments/search?max_results=1", "/graphql", f"{FILES}?path=.", "/signup", "/metrics"):
        assert guarded.ask(path, login=False) == 401, path
    search = f"{API}/experiments/search?max_results=1"
    assert guarded.ask(search) == 200
    assert guarded.ask(search, host="evil.example") == 403


def test_mlflow_reads_no_file_outside_its_own(guarded):
    for path in ("../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd"):
        assert 400 <= guarded.ask(f"{FILES}/{path}") < 500, path
        assert 400 <= guarded.ask(f"{FILES}?path={path}") < 500, path
    assert guarded.ask(f"{API}/registered-models/create", send={"name": "m"}) == 200
    for source in ("/etc", "file:///etc", "models:/../..", "mlflow-artifacts:/../../etc"):
        sent = {"name": "m", "source": source}
        assert 400 <= guarded.ask(f"{API}/model-versions/create", send=sent) < 500, source


def test_the_check_tells_a_login_that_is_missing_from_one_that_is_right(guarded, monkeypatch, tmp_path):
    def said() -> str:
        return "\n".join(str(found) for found in readiness.findings(alone=True) if found.what in ("MLflow", "spool"))

    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded.address)
    assert re.search(r"fault +MLflow .*MLFLOW_TRACKING_USERNAME", said())
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert re.search(r"ok +MLflow .*takes this one", said())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded.address.replace("127.0.0.1", "localhost"))
    assert re.search(r"fault +MLflow .*--allowed-hosts", said())
    with Tracker(tmp_path / "runs" / "late" / "spool", "late") as tracker:
        tracker.start("late", name="late")
        tracker.close(timeout_s=0.0)
    assert re.search(r"look +spool +1 events of 'late' wait", said())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert re.search(r"fault +MLflow +nothing answers", said())


def test_no_password_gets_into_a_run_or_what_is_tracked_of_it(guarded, monkeypatch, tmp_path, caplog):
    for name, value in {"USERNAME": "admin", "PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    address = guarded.address.replace("://", f"://admin:{PASSWORD}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2" * 5)
    with Tracker(tmp_path / "spool", "secret") as tracker:
        tracker.start("secret", name="secret", params=RunConfig().flat(), tags={"code": tracking.code_version()})
        tracker.text("secret", json.dumps(tracking.environment()), "environment.json")
    assert tracker.pending == 0
    shown = caplog.text + tracker.ui_url + tracking.without_password(address)
    kept = everything_in(tmp_path)
    assert PASSWORD not in shown + kept
    assert "hunter2" not in shown + kept


def everything_in(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def test_codes_stay_and_names_become_pseudonyms_that_only_the_key_explains(monkeypatch, tmp_path):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "one"))
    for code in ("sub-01", "S3", "12", "subject 7", "", "2/5 of by-image"):
        assert pseudonyms.pseudonym(code) == code
    assert not (tmp_path / "one").exists()  # no key where none is needed
    name = pseudonyms.pseudonym(MARKER)
    assert re.fullmatch("p[0-9a-f]{8}", name)
    assert pseudonyms.pseudonym("sub-19850412") != "sub-19850412"  # a date of birth is no code
    again = [sys.executable, "-c", f"from eegvision import pseudonyms; print(pseudonyms.pseudonym({MARKER!r}))"]
    assert subprocess.run(again, capture_output=True, text=True, check=True).stdout.strip() == name
    assert stat.S_IMODE((tmp_path / "one" / "pseudonyms.key").stat().st_mode) == 0o600
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "two"))
    assert pseudonyms.pseudonym(MARKER) != name


def test_settings_name_no_subject_and_keep_their_form():
    config = RunConfig().with_overrides({"data.subjects": (MARKER, "sub-02"), "eeg.encoder": "tsconv"})
    for values in (config.to_dict(), config.flat()):
        public = pseudonyms.public(values)
        assert MARKER not in json.dumps(public)
        assert "sub-02" in json.dumps(public)
        assert public.keys() == values.keys()
        assert pseudonyms.has_names(values)
    assert not pseudonyms.has_names(RunConfig().to_dict())
    assert RunConfig.from_dict(pseudonyms.public(config.to_dict())).eeg == config.eeg


def test_a_subjects_name_reaches_neither_mlflow_nor_the_report_nor_what_is_printed(
    session_home, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("EEGVISION_HOME", str(session_home))
    dataset_of_jane(session_home / "datasets" / "jane")
    config = RunConfig().with_overrides(
        {
            **{"data.dataset": "jane", "data.subjects": (MARKER, "sub-02"), "train.max_passes": 1},
            **{"data.val_fraction": 0.25, "data.test_fraction": 0.25, "loss.name": "info_nce", "image.size_px": 32},
            **{"eeg.encoder": "tsconv", "eeg.embed_dim": 16, "image.embed_dim": 16, "train.batch_size": 16},
        }
    )
    run = session_home / "runs" / "of-jane"
    own = run / "trials" / "of-jane-001"
    own.mkdir(parents=True)
    (run / "sweep.json").write_text(json.dumps({"dataset.fingerprint": "0", **flatten(config.to_dict())}))
    (own / "trial.json").write_text(json.dumps({"number": 1, "suggested": {}, "fingerprint": config.fingerprint()}))
    distributed.fit_here(config, own, lambda _: None, cpus=1.0)
    trials.write_end(own, "finished")

    store = f"sqlite:///{tmp_path}/mlflow.db"
    with Tracker(run / "spool", "of-jane", store) as tracker:
        tracker.start("of-jane", name="of-jane", params=config.flat())
        for protocol in ("zero-shot", "probe"):
            question = Question(protocol=protocol, curve=False)
            record.score_trials(run, [own], question, side="val", purpose="a test", say=print)
        tracker.artifact("of-jane", run / "evaluations", "evaluations")
    assert tracker.pending == 0
    page = study_page(["of-jane"], tmp_path / "report.html").page
    tracked, printed = everything_in(tmp_path), capsys.readouterr().out
    assert pseudonyms.pseudonym(MARKER) in page.read_text()
    assert pseudonyms.pseudonym(MARKER) in everything_in(tmp_path / "mlartifacts")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert pseudonyms.pseudonym(MARKER) in str(database.execute("SELECT * FROM params").fetchall())
    assert MARKER not in tracked + printed
    for path in (run / "evaluations").glob("*.parquet"):  # compressed
        assert MARKER not in str(pq.read_table(path).to_pylist())


def dataset_of_jane(root: Path) -> None:
    """The small simulated data set, its first subject under a name of her own, in the ids of segments as well."""
    made = simulate.simulate(simulate.PRESETS["tiny"], "jane")
    parts = [replace(part, read=partial(_renamed, part.read)) for part in made.parts]
    assemble.write(root, replace(made, parts=parts), rows_per_shard=100)


def _renamed(read: Callable[[Counter[str]], Iterator[Segment]], dropped: Counter[str]) -> Iterator[Segment]:
    for made in read(dropped):
        subject, segment_id = (text.replace("sub-01", MARKER) for text in (made.subject, made.segment_id))
        yield replace(made, subject=subject, segment_id=segment_id)
