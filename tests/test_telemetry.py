"""eegvision.telemetry: what a run's events come to as gauges, and log lines that machines can read."""

import json
import logging
import sys
import threading

import pytest

from eegvision import telemetry
from eegvision.telemetry import Gauges, JsonLines
from eegvision.vocab import InputError

EVENTS = [
    {"do": "begin", "metric": "val/top1", "mode": "max"},
    {"do": "trial", "id": "a", "number": 1},
    {"do": "attempt", "id": "a", "attempt": 1},
    {"do": "trial", "id": "b", "number": 2},
    {"do": "attempt", "id": "b", "attempt": 1},
    {"do": "pass", "id": "a", "pass": 1, "metrics": {"val/top1": 0.2, "seconds": 3.0}},
    {"do": "pass", "id": "a", "pass": 2, "metrics": {"val/top1": 0.1}},
    {"do": "lost", "id": "b", "attempt": 1, "reason": "killed"},
    {"do": "end", "id": "a", "status": "finished"},
]


@pytest.fixture
def gauges(monkeypatch):
    """{(name, labels): value} of what Ray is told."""
    from ray.util import metrics

    told: dict[tuple[str, ...], float] = {}

    class Told:
        def __init__(self, name: str, _: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self.keys)
            told[(self.name, *(tags[key] for key in self.keys))] = value

    monkeypatch.setattr(metrics, "Gauge", Told)
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: True)
    return told


def test_events_become_gauges(gauges):
    seen = Gauges("demo", backlog=lambda: 7)
    for event in EVENTS:
        seen.see(event)
    assert gauges == {
        ("eegvision_trials", "demo", "finished"): 1,
        ("eegvision_trials", "demo", "running"): 0,  # said, so that no old number stays on the page
        ("eegvision_trials", "demo", "waiting"): 1,
        ("eegvision_passes", "demo"): 2,
        ("eegvision_best_score", "demo", "val/top1"): 0.2,
        ("eegvision_attempts_lost", "demo", "killed"): 1,
        ("eegvision_spool_backlog", "demo"): 7,
    }


def test_a_resumed_run_counts_on_and_small_can_be_good(gauges):
    seen = Gauges("demo")
    loss = [event | {"metric": "val/top1", "mode": "min"} if event["do"] == "begin" else event for event in EVENTS]
    for event in [*loss[:-2], {"do": "resume", "metric": "val/top1", "mode": "min"}]:
        seen.see(event)
    assert gauges["eegvision_trials", "demo", "waiting"] == 2
    assert gauges["eegvision_trials", "demo", "running"] == 0
    assert gauges["eegvision_best_score", "demo", "val/top1"] == 0.1
    seen.see({"do": "trial", "id": "c", "number": 1, "was": "a"})  # the folder's new name, not another trial
    assert gauges["eegvision_trials", "demo", "waiting"] == 2


def test_details_of_a_reason_make_no_new_time_series(gauges):
    for details in ("a", "b"):
        Gauges("demo").see({"do": "lost", "id": "a", "reason": f"error: ValueError: {details}"})
    assert [key for key in gauges if "lost" in key[0]] == [("eegvision_attempts_lost", "demo", "error")]


def test_without_ray_events_only_pass_by(monkeypatch):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for event in EVENTS:
        Gauges("demo").see({"metric": "val/top1", "mode": "max"} | event)
    assert "ray" not in sys.modules


def line_of(record: logging.LogRecord) -> dict[str, object]:
    return json.loads(JsonLines().format(record))


def record(message: str = "a %s", *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("eegvision.train", logging.WARNING, __file__, 1, message, args or ("b",), None)
    made.created, made.msecs = 0.25, 250.0
    made.__dict__.update(more)
    return made


def test_a_line_says_when_where_and_of_which_pass():
    with telemetry.at(training="demo/a"), telemetry.at(pass_number=7):
        line = line_of(record())
    assert {name: line[name] for name in ("time", "level", "training", "pass", "message")} == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "WARNING",
        "training": "demo/a",
        "pass": 7,
        "message": "a b",
    }
    assert {"host", "pid", "logger"} <= line.keys()
    assert "pass" not in line_of(record())  # outside it is over


def test_two_trainings_in_threads_keep_apart():
    found = {}
    both = threading.Barrier(2)

    def train(name: str) -> None:
        with telemetry.at(training=name):
            both.wait()
            found[name] = line_of(record())["training"]

    threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": "a", "b": "b"}


def test_an_error_of_many_lines_is_one_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made = record(exc_info=sys.exc_info())
    text = JsonLines().format(made)
    assert "\n" not in text
    assert "two\nlines" in json.loads(text)["error"]


def test_an_unknown_kind_of_log_is_refused(monkeypatch):
    monkeypatch.setenv("EEGVISION_LOG", "xml")
    with pytest.raises(InputError, match="'xml'; expected 'json' or 'text'"):
        telemetry.is_wanted()
