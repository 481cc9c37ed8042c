"""eegvision.report.scalp: where electrodes lie, what is between them, and both looks."""

from typing import Any

import numpy as np
import pytest

from eegvision.report import scalp
from eegvision.report.sheet import sheet, text_mm, wrapped
from eegvision.vocab import InputError
from report.heads import cap

FULL = cap(128)
PLACE_OF = dict(zip(FULL.channels, scalp.top_view(FULL.positions_m), strict=True))


def pixel(channel):
    """(row, column) of an electrode in the picture of 400 px."""
    right, front = PLACE_OF[channel]
    return round(199.5 - 200 * front), round(199.5 + 200 * right)


def test_the_nose_is_up_and_left_is_left():
    assert PLACE_OF["Fz"][1] > PLACE_OF["Cz"][1] > PLACE_OF["Pz"][1] > PLACE_OF["Oz"][1]
    assert PLACE_OF["T7"][0] < PLACE_OF["C3"][0] < PLACE_OF["Cz"][0] < PLACE_OF["C4"][0] < PLACE_OF["T8"][0]
    assert np.abs(PLACE_OF["Cz"]).max() < 0.1
    assert abs(PLACE_OF["Oz"][0]) < 0.03


def test_all_electrodes_lie_in_the_head_also_those_below_the_ears():
    radius_C = np.linalg.norm(scalp.top_view(FULL.positions_m), axis=1)
    assert 0.9 < radius_C.max() < 1
    assert np.linalg.norm(PLACE_OF["TP9"]) > np.linalg.norm(PLACE_OF["T7"]) > np.linalg.norm(PLACE_OF["C3"])


def test_distance_from_the_top_is_the_angle_and_the_rim_of_a_small_cap_is_where_the_head_is_widest():
    angle_C = np.array([0, 30, 60, 90, 90, 90, 60])
    around_C = np.array([0, 0, 0, 0, 90, 200, 150])
    theta, phi = np.deg2rad(angle_C), np.deg2rad(around_C)
    sphere_C3 = np.column_stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    place_C2 = scalp.top_view(0.09 * sphere_C3 + [0.001, -0.02, 0.03])
    expected_C2 = angle_C[:, None] / 90 * np.column_stack([np.cos(phi), np.sin(phi)])
    assert place_C2 * scalp.top_view(0.09 * sphere_C3)[3, 0] ** -1 == pytest.approx(expected_C2, abs=1e-6)
    assert np.linalg.norm(place_C2, axis=1).max() == pytest.approx(1 / 1.04)


def test_the_map_is_warm_where_the_values_are_and_empty_outside_the_head():
    away_C = [np.linalg.norm(place_2 - PLACE_OF["Oz"]) for place_2 in PLACE_OF.values()]
    value_C = np.maximum(0, 1 - np.array(away_C) / 0.4)
    image_HW = scalp.scalp_image(value_C, FULL.positions_m)
    assert image_HW.shape == (400, 400)
    row, column = np.unravel_index(np.nanargmax(image_HW), image_HW.shape)
    assert np.hypot(row - pixel("Oz")[0], column - pixel("Oz")[1]) < 15
    assert image_HW[pixel("Fz")] == pytest.approx(0, abs=1e-3)
    assert np.isnan(image_HW[0, 0])
    assert np.isnan(image_HW).mean() == pytest.approx(1 - np.pi / 4, abs=0.01)
    left_C = np.array([float(name == "T7") for name in FULL.channels])
    left_HW = scalp.scalp_image(left_C, FULL.positions_m)
    assert np.nansum(left_HW[:, :200]) > 10 * np.nansum(left_HW[:, 200:])


@pytest.mark.parametrize("n_chans", [8, 128])
def test_no_value_is_invented_and_a_constant_stays_one(n_chans):
    positions_m = cap(n_chans).positions_m
    value_C = np.random.default_rng(0).standard_normal(n_chans)
    inside = scalp.scalp_image(value_C, positions_m, side_px=60, smooth_px=2)
    inside = inside[np.isfinite(inside)]
    assert value_C.min() <= inside.min() < inside.max() <= value_C.max()
    constant = scalp.scalp_image(np.full(n_chans, 3.5), positions_m, side_px=60, smooth_px=2)
    assert constant[np.isfinite(constant)] == pytest.approx(3.5)


def test_smoothing_evens_out_and_without_it_the_map_goes_through_the_electrodes():
    value_C = np.random.default_rng(1).standard_normal(128)
    sharp_HW, smooth_HW = (scalp.scalp_image(value_C, FULL.positions_m, smooth_px=px) for px in (1e-6, 13.0))
    at_C = np.array([sharp_HW[pixel(name)] for name in FULL.channels])
    assert np.corrcoef(at_C, value_C)[0, 1] > 0.98
    assert np.nanstd(smooth_HW) < np.nanstd(sharp_HW)


@pytest.mark.parametrize("look", ["paper", "mne"])
def test_both_looks_draw_marks_within_their_axes_and_leave_no_pyplot_figure(look):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    value_C = np.array([float(name.startswith("O")) for name in FULL.channels])
    with sheet(40, 40) as page:
        axes = page.blank(0, 0, 40, 40)
        limits = (0.0, 1.0)
        shown = scalp.draw_scalp(
            axes, value_C, FULL.positions_m, limits=limits, cmap="viridis", is_marked_C=value_C > 0, look=look
        )
        page.figure.draw_without_rendering()
        assert shown.get_clim() == limits
        dots_C2 = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
        assert len(dots_C2) == 128
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert left < dots_C2[:, 0].min() < dots_C2[:, 0].max() < right
        assert low < dots_C2[:, 1].min() < dots_C2[:, 1].max() < high
        field_HW = np.ma.filled(np.ma.asarray(shown.get_array()), np.nan)[:: 1 if shown.origin == "upper" else -1]
        half = len(field_HW) // 2
        assert np.nanmean(field_HW[half:]) > np.nanmean(field_HW[:half])  # the back of the head is down
    assert plt.get_fignums() == before


def test_names_stand_in_place_of_dots():
    small = cap(8)
    with sheet(40, 40) as page:
        axes = page.blank(0, 0, 40, 40)
        scalp.draw_scalp(
            axes, np.arange(8.0), small.positions_m, limits=(0, 7), cmap="viridis", channels=small.channels
        )
        assert [text.get_text() for text in axes.texts] == list(small.channels)
        assert not any(line.get_marker() == "o" for line in axes.lines)


@pytest.mark.parametrize(
    ("value_C", "positions_m", "message"),
    [
        (np.zeros(3), (), "ingest the recording with 10-05"),
        (np.zeros(3), np.zeros((3, 3)), "4 electrodes at least"),
        (np.zeros(8), np.full((8, 3), np.nan), "finite positions"),
        (np.zeros(7), cap(8).positions_m, "values of shape .7,. for 8 electrodes"),
        (np.array([0, 0, np.nan, 0, 0, 0, 0, 0]), cap(8).positions_m, "electrode 2 is not finite"),
    ],
)
def test_what_cannot_be_mapped_is_refused(value_C, positions_m, message):
    with pytest.raises(InputError, match=message):
        scalp.scalp_image(value_C, positions_m)


def test_marks_and_names_are_one_for_each_electrode():
    with sheet(20, 20) as page:
        axes = page.blank(0, 0, 20, 20)
        mismatched: list[dict[str, Any]] = [{"channels": ["Oz"]}, {"is_marked_C": np.ones(3, dtype=bool)}]
        for given in mismatched:
            with pytest.raises(InputError, match="for 8 electrodes; give one for each"):
                scalp.draw_scalp(axes, np.zeros(8), cap(8).positions_m, limits=(0, 1), cmap="viridis", **given)


def test_normalised_runs_from_0_to_1():
    assert scalp.normalised(np.array([-1.0, 1.0, 0.0])).tolist() == [0, 1, 0.5]
    assert scalp.normalised(np.full(3, 2.0)).tolist() == [0, 0, 0]


def test_panels_lie_where_they_are_put_and_words_are_cut_to_fit():
    with sheet(100, 50) as page:
        axes = page.axes(10, 5, 20, 15)
        box = axes.get_position().bounds
        assert box == pytest.approx((0.1, 0.6, 0.2, 0.3))
    lines = wrapped("a very long name of a class of pictures", 20)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert all(text_mm(line) <= 20 for line in lines)
