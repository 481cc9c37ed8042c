"""eegvision.ingest.responses: hand-worked amplitudes, time courses that keep to their interval, scaling, truth."""

import dataclasses
import json
import math

import numpy as np
import pytest

from eegvision.ingest.responses import GROUPS, SITES, amplitudes, class_codes, components, scale_to_rms, truth
from eegvision.ingest.stimuli import FEATURES, make_scene

OCCIPITAL = GROUPS[0]
CODES = class_codes(3, np.random.default_rng(0))
HEADS = np.random.default_rng(1).standard_normal((2, 12, len(SITES)))


def occipital(scenes, feature_MF):
    """Amplitudes [picture, dipole, profile]."""
    return amplitudes(scenes, feature_MF, CODES)[:, :24].reshape(len(scenes), 8, 3)


def scene_at(row, column, label=0):
    return dataclasses.replace(make_scene(0, label, 0), row=row, column=column)


def test_an_occipital_dipole_answers_most_to_an_object_in_the_opposite_quarter():
    # Upper left in the picture is right and low in the head: OI2h medially, POO10h laterally (even numbers: right).
    for row, column, sites in ((0.3, 0.3, ("OI2h", "POO10h")), (0.7, 0.7, ("POO1", "PO3"))):
        amplitude_SP = occipital([scene_at(row, column)], np.zeros((1, len(FEATURES))))[0]
        best = {OCCIPITAL.sites[s] for s in np.argsort(-amplitude_SP[:, 0])[:2]}
        assert best == set(sites)


def test_amplitude_at_the_centre_of_a_receptive_field_by_hand():
    feature_MF = np.zeros((3, len(FEATURES)))
    feature_MF[1, FEATURES.index("contrast")] = 1.0
    feature_MF[2, FEATURES.index("contrast")] = 9.0  # clipped at 2.5
    amplitude_M = occipital([scene_at(0.3, 0.3)] * 3, feature_MF)[:, 0, 0]
    np.testing.assert_allclose(amplitude_M, [0.6, 0.6 + 0.6, 0.6 + 0.6 * 2.5])
    # One field further right, 0.4 of the side away, with a standard deviation of 0.2.
    away = occipital([scene_at(0.3, 0.7)], feature_MF[:1])[0, 0, 0]
    assert away == pytest.approx(0.6 * math.exp(-2))


def test_each_occipital_profile_is_driven_by_its_feature_alone():
    for site, profile, name in ((0, 0, "contrast"), (3, 2, "upright"), (4, 1, "blue_yellow"), (7, 0, "red_green")):
        changed = []
        for number in range(len(FEATURES)):
            feature_MF = np.zeros((2, len(FEATURES)))
            feature_MF[1, number] = 1
            first, second = occipital([scene_at(0.5, 0.5)] * 2, feature_MF)[:, site, profile]
            changed.append(first != second)
        assert [FEATURES[number] for number in np.flatnonzero(changed)] == [name]


def test_later_groups_answer_to_the_class_and_nothing_else():
    scenes = [scene_at(0.3, 0.3, label=1), scene_at(0.7, 0.5, label=1), scene_at(0.3, 0.3, label=2)]
    late_MK = amplitudes(scenes, np.random.default_rng(0).standard_normal((3, len(FEATURES))), CODES)[:, 24:]
    np.testing.assert_array_equal(late_MK[0], late_MK[1])
    assert (late_MK[0] != late_MK[2]).all()


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_time_courses_keep_to_their_interval_and_fill_it(group):
    time_s = np.arange(0, 0.5, 0.001)
    profile_PT = group.profiles(time_s)
    start, end = group.interval_s
    inside = (time_s > start + 1e-9) & (time_s < end - 1e-9)
    np.testing.assert_allclose(profile_PT[:, ~inside], 0, atol=1e-12)
    assert (profile_PT[:, inside].sum(axis=0) > 0).all()
    np.testing.assert_allclose(profile_PT.max(axis=1), 1, atol=1e-3)


def test_intervals_follow_one_another():
    bounds = [bound for group in GROUPS for bound in group.interval_s]
    assert bounds == [0.08, 0.16, 0.16, 0.32, 0.32, 0.44]


def test_scale_gives_the_rms_asked_for_and_the_groups_their_shares():
    scenes = [make_scene(0, label, index) for label in range(3) for index in range(6)]
    time_s = np.arange(88) / 200
    amplitude_MK = amplitudes(scenes, np.random.default_rng(2).standard_normal((18, len(FEATURES))), CODES)
    scale_K = scale_to_rms(list(HEADS), time_s, amplitude_MK, rms=3.0)
    deviation_MK = (amplitude_MK - amplitude_MK.mean(axis=0)) * scale_K
    squares_T = np.zeros(len(time_s))
    for head_CS in HEADS:  # the definition, in full
        lead_CK, profile_KT = components(head_CS, time_s)
        squares_T = (
            squares_T + (np.einsum("mk,ck,kt->mct", deviation_MK, lead_CK, profile_KT) ** 2).mean(axis=(0, 1)) / 2
        )
    assert math.sqrt(squares_T.mean()) == pytest.approx(3.0)
    power = [squares_T[(time_s >= a) & (time_s < b)].sum() for a, b in (group.interval_s for group in GROUPS)]
    assert np.sqrt(power) / math.sqrt(power[0]) == pytest.approx([group.share for group in GROUPS])


def test_truth_tells_projections_peaks_and_codes():
    channels = [f"E{n}" for n in range(12)]
    told = json.loads(json.dumps(truth(channels, list(HEADS), ("a", "b", "c"), CODES)))
    power_CS = (HEADS**2).mean(axis=0)
    frontal_C = np.sqrt(power_CS[:, -3:].sum(axis=1))
    weights = told["groups"]["frontal"]["projection"]
    assert list(weights.values()) == pytest.approx(frontal_C / frontal_C.max(), abs=1e-4)
    assert told["sources"]["Fz"] == {
        "group": "frontal",
        "peak_channel": f"E{power_CS[:, -1].argmax()}",
        "driven_by": ["class"],
    }
    assert told["sources"]["PO3"]["driven_by"] == ["red_green", "blue_yellow", "oblique"]
    assert told["sources"]["PO3"]["receptive_field"] == [0.7, 0.7]
    np.testing.assert_allclose(told["codes"]["temporal"]["b"], CODES["temporal"][1], atol=5e-4)
