"""eegvision.intake: a data set with its page, and what is said of it."""

import dataclasses
from pathlib import Path

import pytest

from eegvision import intake, runs
from eegvision.ingest import shards, simulate
from eegvision.ingest.places import place
from eegvision.vocab import RunInUseError


@pytest.fixture(scope="module")
def made(session_home) -> dict[str, tuple[Path, list[str]]]:
    """A mixed and a block design of one lab: folder and what was said of each."""
    found = {}
    for design in ("random", "block"):
        root = session_home / design / "eeg"
        said: list[str] = []
        options = dataclasses.replace(
            simulate.PRESETS["tiny"], design=design, n_classes=6, images_per_class=12, n_subjects=1
        )
        manifest = intake.ingest(simulate.simulate(options, design), place(root), say=said.append)
        intake.say_what_is_in(place(root), manifest, said.append)
        found[design] = (root, said)
    return found


def test_a_mixed_order_is_green_and_a_block_design_red_with_reason_and_remedy(made):
    (green, said_green), (red, said_red) = made["random"], made["block"]
    assert shards.read_manifest(green).grade == "green"
    assert shards.read_manifest(red).grade == "red"
    assert "order audit     green" in said_green
    assert "order audit     red" in said_red
    assert any(line.startswith("  red") and "class" in line for line in said_red)
    assert any("what to do" in line and "leave-block-out" in line for line in said_red)
    assert not any("what to do" in line for line in said_green)


def test_the_page_stands_beside_the_manifest_and_says_the_same(made):
    for design, grade in (("random", "green"), ("block", "red")):
        root, said = made[design]
        page = (root / intake.PAGE_NAME).read_text()
        assert f'<span class="badge">{grade}</span>' in page
        assert f"report          {root / intake.PAGE_NAME}" in said
        for name in shards.read_manifest(root).classes:
            assert name in page


def test_the_page_can_be_made_again_from_the_data_set_alone(made):
    root, _ = made["random"]
    before = (root / intake.PAGE_NAME).read_bytes()
    (root / intake.PAGE_NAME).unlink()
    intake.draw(place(root), shards.read_manifest(root))
    assert (root / intake.PAGE_NAME).read_bytes() == before


def test_a_page_in_a_bucket_is_fetched_to_look_at(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "home"))
    there = place(bucket)
    (there / intake.PAGE_NAME).write(b"<html>")
    assert intake.page_of(there) == tmp_path / "home/pages/eeg.html"
    assert intake.page_of(there).read_bytes() == b"<html>"


def test_a_second_process_that_writes_the_same_data_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    recording = simulate.simulate(simulate.PRESETS["tiny"], "tiny")
    with (
        runs.sole_owner(tmp_path / "locks" / "eeg"),
        pytest.raises(RunInUseError, match="'eeg' is being run by another"),
    ):
        intake.ingest(recording, place(tmp_path / "eeg"), say=print)
    assert not (tmp_path / "eeg").exists()
