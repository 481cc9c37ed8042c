"""eegvision.report.channel_figures: heads and bars show the numbers they were given."""

from typing import Any

import numpy as np
import pytest

from eegvision.analyses import windows
from eegvision.report import channel_figures
from eegvision.vocab import InputError
from report.heads import cap, check_files, read_csv, read_svg, same_svg

CAP = cap(16)


@pytest.mark.parametrize("n", [1, 45])
def test_a_head_per_class_with_its_values_beside_it(tmp_path, n):
    names = [f"class number {g}" for g in range(n)]
    mean_GC = np.random.default_rng(0).standard_normal((n, 16))
    files = channel_figures.class_scalps_figure(
        names, mean_GC, CAP.positions_m, tmp_path / "classes", channels=CAP.channels
    )
    check_files(files, "classes")
    found = read_csv(files)
    assert found["group"].tolist() == names
    assert found[list(CAP.channels)].to_numpy() == pytest.approx(mean_GC)
    assert read_svg(files).count("<image") == n + 1  # heads, and the one colour bar
    assert "each head from its least (0) to its largest channel (1)" in read_svg(files)


def test_the_same_heads_give_the_same_file(tmp_path):
    first, second = (
        channel_figures.class_scalps_figure(["a"], np.arange(16.0)[None], CAP.positions_m, tmp_path / name)
        for name in ("a", "b")
    )
    assert same_svg(first, second)
    assert list(read_csv(first).columns[:2]) == ["group", "channel_0"]


def test_classes_that_do_not_fit_are_refused(tmp_path):
    for names, mean_GC, positions_m, message in (
        ([], np.zeros((0, 16)), CAP.positions_m, "0 names"),
        (["a", "b"], np.zeros((1, 16)), CAP.positions_m, "2 names"),
        (["a"], np.zeros((1, 16)), (), "10-05 channel names or a montage"),
        (["a"], np.zeros((1, 15)), CAP.positions_m, "for 16 electrodes"),
    ):
        with pytest.raises(InputError, match=message):
            channel_figures.class_scalps_figure(names, mean_GC, positions_m, tmp_path / "classes")


INTERVALS_S = ((0.0, 0.08), (0.08, 0.16))


def test_intervals_share_a_scale_and_clusters_are_marked(tmp_path):
    overall_C, mean_KC = np.arange(16.0) / 100, -np.arange(32.0).reshape(2, 16) / 100
    is_in_C, is_in_KC = overall_C > 0.1, mean_KC < -0.2
    files = channel_figures.interval_scalps_figure(
        overall_C, INTERVALS_S, mean_KC, CAP.positions_m, tmp_path / "intervals", significant_C=is_in_C,
        significant_KC=is_in_KC, channels=CAP.channels,
    )  # fmt: skip
    check_files(files, "intervals")
    found = read_csv(files).set_index(["what", "head"])
    names = ["whole segment", "0 to 80 ms", "80 to 160 ms"]
    assert found.loc["importance"].loc[names].to_numpy() == pytest.approx(np.vstack([overall_C, mean_KC]))
    assert found.loc["in_cluster"].loc[names].to_numpy().tolist() == np.vstack([is_in_C, is_in_KC]).astype(int).tolist()
    text = read_svg(files)
    assert text.count("<image") == 4
    assert "−0.31" in text
    assert "cluster beyond chance" in text


def test_intervals_without_tests_say_nothing_of_clusters(tmp_path):
    files = channel_figures.interval_scalps_figure(
        np.zeros(16), INTERVALS_S, np.zeros((2, 16)), CAP.positions_m, tmp_path / "intervals"
    )
    assert set(read_csv(files)["what"]) == {"importance"}
    assert "cluster" not in read_svg(files)
    with pytest.raises(InputError, match="for 2 intervals"):
        channel_figures.interval_scalps_figure(
            np.zeros(16), INTERVALS_S, np.zeros((3, 16)), CAP.positions_m, tmp_path / "intervals"
        )
    with pytest.raises(InputError, match="1 rows of marks for 2 intervals"):
        channel_figures.interval_scalps_figure(
            np.zeros(16), INTERVALS_S, np.zeros((2, 16)), CAP.positions_m, tmp_path / "intervals",
            significant_KC=np.zeros((1, 16), dtype=bool),
        )  # fmt: skip


def score(name, accuracy, samples=None):
    return windows.ViewScore(
        view=windows.View(name=name, samples=samples),
        encoded="segment",
        segment_ids=("s",),
        hit_N=np.zeros(1),
        margin_N=np.zeros(1),
        top_k=1,
        accuracy=accuracy,
        low=accuracy - 0.02,
        high=accuracy + 0.02,
        level=0.95,
        draw_error=0.0,
        chance=0.005,
        n_draws=1,
        n_images=200,
    )


@pytest.mark.parametrize(("kind", "part"), [("spatial", "occipital"), ("spectral", "alpha (8-12 Hz)")])
def test_parts_alone_and_left_out_beside_all_and_chance(tmp_path, kind, part):
    scores = [score("all", 0.3), score(f"only {part}", 0.2), score(f"without {part}", 0.1), score("only more", 0.05)]
    files = channel_figures.views_figure(scores, kind, tmp_path / "views")
    check_files(files, "views")
    found = read_csv(files)
    assert found["view"].tolist() == [one.view.name for one in scores]
    assert found["accuracy"].tolist() == [0.3, 0.2, 0.1, 0.05]
    assert found["low"].tolist() == pytest.approx([0.28, 0.18, 0.08, 0.03])
    for words in (part, "(30.0 %)", "chance (0.5 %)", "top-1 of pictures (%), 95 % intervals"):
        assert words in read_svg(files)


def test_views_that_cannot_be_paired_are_refused(tmp_path):
    refused: list[tuple[list[windows.ViewScore], Any, str]] = [
        ([score("only a", 0.1)], "spatial", "called 'all'"),
        ([score("all", 0.1)], "spatial", "no view of a part"),
        ([score("all", 0.1), score("half", 0.1)], "spatial", "neither 'only' nor 'without'"),
        ([score("all", 0.1)], "regions", "expected spatial or spectral"),
    ]
    for scores, kind, message in refused:
        with pytest.raises(InputError, match=message):
            channel_figures.views_figure(scores, kind, tmp_path / "views")


def test_curves_over_time_are_in_seconds_after_onset(tmp_path):
    given = {"t_min_s": 0.04, "sfreq_hz": 250.0, "n_times": 100}
    kinds = (
        windows.growing_windows(0.1, **given),
        windows.shrinking_windows(0.1, **given),
        windows.sliding_windows(0.1, 0.1, **given),
    )
    growing, shrinking, sliding = (
        [score(view.name, 0.02 + 0.1 * n, view.samples) for n, view in enumerate(views)] for views in kinds
    )
    files = channel_figures.windows_figure(
        growing, shrinking, sliding, tmp_path / "windows", sfreq_hz=250.0, t_min_s=0.04
    )
    check_files(files, "windows")
    found = read_csv(files)
    grown = found[found["kind"] == "growing"]
    assert set(grown["from_s"]) == {0.04}
    assert grown["to_s"].tolist() == pytest.approx([0.14, 0.24, 0.34, 0.44])
    assert grown["accuracy"].tolist() == pytest.approx([0.02, 0.12, 0.22, 0.32])
    slid = found[found["kind"] == "sliding"]
    assert (slid["to_s"] - slid["from_s"]).tolist() == pytest.approx([0.1] * len(slid))
    assert "t to t + 100 ms" in read_svg(files)
    assert "chance" in read_svg(files)
    alone = channel_figures.windows_figure([], [], sliding, tmp_path / "alone", sfreq_hz=250.0, t_min_s=0.04)
    assert set(read_csv(alone)["kind"]) == {"sliding"}


def test_windows_without_time_are_refused(tmp_path):
    given = {"sfreq_hz": 250.0, "t_min_s": 0.0}
    with pytest.raises(InputError, match="at least one view of time"):
        channel_figures.windows_figure([], [], [], tmp_path / "windows", **given)
    with pytest.raises(InputError, match="'all' shows all samples"):
        channel_figures.windows_figure([score("all", 0.1)], [], [], tmp_path / "windows", **given)
