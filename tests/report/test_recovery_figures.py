"""eegvision.report.recovery_figures: every score is drawn and listed, scalps hold the values as given."""

from dataclasses import replace

import numpy as np
import pytest

from eegvision.report.recovery_figures import Scored, planted_scalps_figure, scores_figure
from eegvision.vocab import InputError
from report.heads import cap, check_files, read_csv, read_svg, same_svg


def scored(title="Channels: all sources", n_seeds=3):
    rng = np.random.default_rng(len(title))
    of_arm = {
        arm: [(value, value - 0.2, value + 0.1) for value in rng.normal(mean, 0.1, n_seeds).tolist()]
        for arm, mean in (("trained", 0.7), ("untrained", 0.0), ("shuffled", 0.1))
    }
    return Scored(title=title, measure="rank correlation", chance=0.0, of_arm=of_arm)


def test_every_score_is_drawn_and_listed(tmp_path):
    rows = [scored(), scored("Saliency on objects, NSS"), scored("Interval 160-320 ms above 0-80 ms"), scored("Last")]
    files = scores_figure(rows, tmp_path / "scores")
    check_files(files, "scores")
    text = read_svg(files)
    for words in ("Channels: all sources", "rank correlation", "trained", "untrained", "shuffled", "dashed: chance"):
        assert words in text
    found = read_csv(files)
    assert len(found) == 4 * 3 * 3
    one = found[(found["quantity"] == "Last") & (found["arm"] == "shuffled") & (found["seed"] == 2)]
    assert one[["value", "low", "high"]].iloc[0].tolist() == pytest.approx(rows[3].of_arm["shuffled"][1])
    assert same_svg(files, scores_figure(rows, tmp_path / "again"))


def test_a_value_outside_its_interval_is_drawn_all_the_same(tmp_path):
    """Percentiles of draws need not hold the score itself; bars of negative length would be an error."""
    row = replace(scored(n_seeds=1), of_arm={"trained": [(0.5, 0.6, 0.7)], "untrained": [(0.5, 0.1, 0.4)]})
    assert len(read_csv(scores_figure([row], tmp_path / "scores"))) == 2


def test_scores_that_are_not_there_are_refused(tmp_path):
    for rows in ([], [replace(scored(), of_arm={})], [scored(), scored(n_seeds=0)]):
        with pytest.raises(InputError, match="give at least one score of each"):
            scores_figure(rows, tmp_path / "scores")


def scalps(montage):
    rng = np.random.default_rng(0)
    n_chans = len(montage.channels)
    columns = ("planted", "trained", "untrained", "shuffled")
    return {row: {name: rng.normal(size=n_chans) for name in columns} for row in ("whole segment", "80-160 ms")}


def test_scalps_hold_what_was_planted_beside_what_was_found(tmp_path):
    montage = cap(16)
    rows = scalps(montage)
    rows["80-160 ms"]["shuffled"] = np.zeros(16)  # nothing found is no reason to fail
    files = planted_scalps_figure(rows, montage.positions_m, tmp_path / "scalps", channels=montage.channels)
    check_files(files, "scalps")
    text = read_svg(files)
    for words in ("planted", "shuffled", "whole segment", "80-160 ms", "least to largest of each map"):
        assert words in text
    found = read_csv(files).set_index("channel")
    assert found.index.tolist() == list(montage.channels)
    for row, value_of in rows.items():
        for name, value_C in value_of.items():
            assert found[f"{row}: {name}"].tolist() == pytest.approx(value_C)


def test_scalps_that_do_not_fit_are_refused(tmp_path):
    montage = cap(16)
    rows = scalps(montage)
    other = rows | {"80-160 ms": {"planted": np.ones(16)}}
    short = {"whole segment": {"planted": np.ones(5)}}
    for given, positions_m, message in (
        ({}, montage.positions_m, "0 rows of scalps"),
        (other, montage.positions_m, "differ in columns"),
        (short, montage.positions_m, "5"),
        (rows, (), "positions"),
    ):
        with pytest.raises(InputError, match=message):
            planted_scalps_figure(given, positions_m, tmp_path / "scalps", channels=montage.channels)
