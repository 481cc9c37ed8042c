"""eegvision.ingest.simulate: what was planted can be found, what was not cannot, and the truth is the truth."""

import dataclasses
import functools
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from eegvision.ingest.assemble import write
from eegvision.ingest.shards import read_manifest
from eegvision.ingest.simulate import PRESETS, Simulation, simulate
from eegvision.ingest.stimuli import object_mask
from eegvision.vocab import InputError

TINY = PRESETS["tiny"]
CLEAN = {"bad_channel_rate": 0.0, "artefact_rate": 0.0, "drift_uV": 0.0}
NO_PICTURE = {**CLEAN, "snr": 0.0, "n_subjects": 1, "n_classes": 5, "images_per_class": 24, "repetitions": 1}


def segments_of(recording):
    return [segment for part in recording.parts for segment in part.read(Counter())]


@functools.cache
def recorded(**changes):
    """Recording, its segments, and its EEG [N, C, T]."""
    recording = simulate(dataclasses.replace(TINY, **changes))
    segments = segments_of(recording)
    return recording, segments, np.stack([segment.eeg_CT for segment in segments])


def classes_of(segments):
    return np.array([segment.image_id.rsplit("-", 1)[0] for segment in segments])


def images_of(segments):
    return np.array([segment.image_id for segment in segments])


def held_out_images(segments, share=0.25):
    images = np.unique(images_of(segments))
    return np.random.default_rng(0).permutation(images)[: round(share * len(images))]


def ridge(eeg_NCT, target_NK, is_test_N):
    """Predict the targets of tested segments from z-scored EEG."""
    z_NCT = eeg_NCT - eeg_NCT.mean(axis=2, keepdims=True)
    z_NF = (z_NCT / z_NCT.std(axis=2, keepdims=True)).reshape(len(eeg_NCT), -1)
    gram_NN = z_NF @ z_NF.T
    seen = gram_NN[np.ix_(~is_test_N, ~is_test_N)]
    mean_K = target_NK[~is_test_N].mean(axis=0)
    weight = np.linalg.solve(
        seen + 0.3 * np.trace(seen) / len(seen) * np.eye(len(seen)), target_NK[~is_test_N] - mean_K
    )
    return gram_NN[np.ix_(is_test_N, ~is_test_N)] @ weight + mean_K


def class_hits(segments, eeg_NCT, is_test_N):
    names, label_N = np.unique(classes_of(segments), return_inverse=True)
    guess_N = ridge(eeg_NCT, np.eye(len(names))[label_N], is_test_N).argmax(axis=1)
    return int((guess_N == label_N[is_test_N]).sum()), int(is_test_N.sum()), len(names)


def p_above_chance(hits, n, n_classes):
    return binom.sf(hits - 1, n, 1 / n_classes)


# ---- the records


def test_header_tells_what_the_segments_are():
    recording, segments, eeg_NCT = recorded()
    header = recording.header
    assert (header.dialect, header.unit, header.sfreq_hz, header.t_min_s) == ("simulated", "uV", 200.0, 0.0)
    assert eeg_NCT.shape == (2 * 5 * 8 * 2, len(header.montage.channels), header.n_times) == (160, 16, 88)
    assert eeg_NCT.dtype == np.float32
    assert {"Oz", "P7", "P8"} < set(header.montage.channels)
    assert len({segment.segment_id for segment in segments}) == 160
    radius = np.linalg.norm(np.array(header.montage.positions_m) - [0, 0.01, 0.04], axis=1)
    assert ((radius > 0.07) & (radius < 0.13)).all()  # metres


def test_the_same_options_give_the_same_recording_however_it_is_read():
    recording, _, eeg_NCT = recorded()
    again = simulate(TINY)
    next(again.parts[0].read(Counter()))  # begun and left
    for expected_CT, segment in zip(eeg_NCT, segments_of(again), strict=True):
        np.testing.assert_array_equal(segment.eeg_CT, expected_CT)
    assert again.header == recording.header
    assert list(again.stimuli) == list(recording.stimuli)
    assert list(again.fixations) == list(recording.fixations)


def test_another_seed_gives_other_pictures_and_other_eeg():
    other = simulate(dataclasses.replace(TINY, seed=1))
    assert next(iter(other.stimuli)).encoded != next(iter(recorded()[0].stimuli)).encoded
    assert np.abs(segments_of(other)[0].eeg_CT - recorded()[2][0]).mean() > 1


def test_stimuli_and_gaze_belong_to_the_pictures_shown():
    recording, segments, _ = recorded()
    stimuli = list(recording.stimuli)
    ids = {stimulus.image_id for stimulus in stimuli}
    assert len(stimuli) == len(ids) == 40
    assert {segment.image_id for segment in segments} == ids
    assert [stimulus.label_name for stimulus in stimuli] == [recording.header.classes[s.label] for s in stimuli]
    fixations = list(recording.fixations)
    assert {fixation.viewer for fixation in fixations} == {"viewer-1", "viewer-2"}
    assert {fixation.image_id for fixation in fixations} == ids
    assert all(0 <= f.row_px <= 31 and 0 <= f.column_px <= 31 for f in fixations)


def test_it_is_written_and_its_truth_comes_back(tmp_path):
    manifest = write(tmp_path / "tiny", recorded()[0])
    assert (manifest.n_segments, manifest.n_images, manifest.subjects) == (160, 40, ("sub-01", "sub-02"))
    truth = read_manifest(tmp_path / "tiny").truth
    assert truth == json.loads(json.dumps(recorded()[0].header.truth))
    assert truth["options"] == dataclasses.asdict(TINY)
    assert object_mask(next(iter(truth["images"].values())), 32).sum() > 20


# ---- when what was shown


@pytest.mark.parametrize("design", ["random", "block"])
def test_each_subject_sees_each_picture_once_per_session_in_an_order_of_its_own(design):
    _, segments, _ = recorded(design=design)
    for subject in ("sub-01", "sub-02"):
        own = [segment for segment in segments if segment.subject == subject]
        assert [segment.order for segment in own] == list(range(80))
        onset_s = np.array([segment.onset_s for segment in own])
        assert np.diff(onset_s).min() == pytest.approx(0.44 + 0.06)
        for session in (0, 1):
            shown = [segment.image_id for segment in own if segment.session == session]
            assert len(shown) == len(set(shown)) == 40
        assert all(segment.repetition == segment.session for segment in own)
    orders = {tuple(s.image_id for s in segments if s.subject == subject) for subject in ("sub-01", "sub-02")}
    assert len(orders) == 2


@pytest.mark.parametrize("design", ["random", "block"])
def test_a_block_has_the_same_pictures_for_everybody_and_is_seen_without_break(design):
    _, segments, _ = recorded(design=design)
    pictures = {}
    for segment in segments:
        pictures.setdefault(segment.block, {}).setdefault((segment.subject, segment.session), set()).add(
            segment.image_id
        )
    assert sorted(pictures) == list(range(10))
    assert all(len(sets) == 4 and len({frozenset(own) for own in sets.values()}) == 1 for sets in pictures.values())
    changes = sum(a.block != b.block for a, b in itertools.pairwise(segments))
    assert changes <= 2 * 2 * 10


def test_blocks_are_of_one_class_in_the_block_design_only():
    for design, is_pure in (("block", True), ("random", False)):
        _, segments, _ = recorded(design=design)
        names = classes_of(segments)
        blocks = np.array([segment.block for segment in segments])
        assert all(len(set(names[blocks == block])) == 1 for block in range(10)) == is_pure


# ---- what the EEG is made of


def test_noise_has_the_amplitude_of_eeg_and_falls_with_frequency():
    _, _, eeg_NCT = recorded(**CLEAN, snr=0.0)
    assert 7 < np.sqrt((eeg_NCT**2).mean()) < 10
    power_F = (np.abs(np.fft.rfft(eeg_NCT * np.hanning(88))) ** 2).mean(axis=(0, 1))
    rate_hz = np.fft.rfftfreq(88, 1 / 200)
    low, alpha, high = (power_F[(rate_hz > a) & (rate_hz < b)].mean() for a, b in ((3, 7), (8, 12), (40, 80)))
    assert alpha > high * 10
    assert low > high * 5


def test_the_response_grows_with_the_snr_and_the_noise_stays():
    noise, single, double = (recorded(**CLEAN, snr=snr)[2] for snr in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(double - noise, 2 * (single - noise), rtol=1e-5, atol=1e-3)
    # Rms of what differs between pictures over that of the noise, within what subjects' gains and trials add.
    differing = (single - noise) - (single - noise).mean(axis=0)
    assert 0.75 < np.sqrt((differing**2).mean() / (noise**2).mean()) < 1.35


@pytest.mark.parametrize("group", ["occipital", "temporal", "frontal"])
def test_a_group_answers_in_its_interval_and_where_the_truth_says(group):
    recording, _, eeg_NCT = recorded(**CLEAN, snr=1.0)
    evoked_NCT = eeg_NCT - recorded(**CLEAN, snr=0.0)[2]
    truth = recording.header.truth["groups"][group]
    time_s = np.arange(88) / 200
    start, end = truth["interval_s"]
    strength_C = evoked_NCT[:, :, (time_s > start + 0.01) & (time_s < end - 0.01)].std(axis=(0, 2))
    weight_C = np.array(list(truth["projection"].values()))
    assert list(truth["projection"]) == list(recording.header.montage.channels)
    assert np.corrcoef(strength_C, weight_C)[0, 1] > 0.8
    assert strength_C.argmax() in np.argsort(-weight_C)[:3]
    before = evoked_NCT[:, :, time_s < 0.07]
    assert np.abs(before).max() < 1e-4  # nothing answers before 80 ms, less the latency of a subject


def test_an_object_on_the_left_is_answered_on_the_right():
    recording, segments, eeg_NCT = recorded(**CLEAN, snr=1.0)
    evoked_NCT = eeg_NCT - recorded(**CLEAN, snr=0.0)[2]
    early_NC = evoked_NCT[:, :, 18:21].mean(axis=2)  # 90-100 ms, P1
    channels = recording.header.montage.channels
    lateral_N = early_NC[:, channels.index("PO4")] - early_NC[:, channels.index("PO3")]
    column_N = np.array([recording.header.truth["images"][s.image_id]["column"] for s in segments])
    assert np.corrcoef(lateral_N, column_N)[0, 1] < -0.4


def test_subjects_differ_in_gain_latency_and_topography():
    recording, segments, eeg_NCT = recorded(**CLEAN, snr=1.0)
    evoked_NCT = eeg_NCT - recorded(**CLEAN, snr=0.0)[2]
    is_first = np.array([segment.subject == "sub-01" for segment in segments])
    first_CT, second_CT = evoked_NCT[is_first].mean(axis=0), evoked_NCT[~is_first].mean(axis=0)
    assert 0.5 < np.corrcoef(first_CT.ravel(), second_CT.ravel())[0, 1] < 0.99
    told = recording.header.truth["subjects"]
    assert told["sub-01"]["latency_s"] != told["sub-02"]["latency_s"]
    assert all(abs(own["latency_s"]) <= 0.008 for own in told.values())


def test_bad_channels_are_those_of_the_truth():
    recording, segments, eeg_NCT = recorded(bad_channel_rate=0.2)
    channels = recording.header.montage.channels
    kinds = []
    for segment, eeg_CT in zip(segments, eeg_NCT, strict=True):
        bad = recording.header.truth["subjects"][segment.subject]["bad_channels"][str(segment.session)]
        for channel, sd in zip(channels, eeg_CT.std(axis=1), strict=True):
            kind = bad.get(channel, "good")
            assert {"dead": 0 < sd < 0.2, "noisy": sd > 28, "good": sd > 1}[kind], (segment.segment_id, channel, sd)
            kinds.append(kind)
    assert 0.1 < 1 - kinds.count("good") / len(kinds) < 0.35
    assert {"dead", "noisy"} < set(kinds)


def test_blinks_are_those_of_the_truth_and_frontal():
    recording, segments, with_NCT = recorded(**{**CLEAN, "artefact_rate": 0.3})
    without_NCT = recorded(**CLEAN)[2]
    blinks = set(recording.header.truth["blinks"])
    has_blink = np.array([segment.segment_id in blinks for segment in segments])
    assert 0.2 < has_blink.mean() < 0.4
    np.testing.assert_array_equal(with_NCT[~has_blink], without_NCT[~has_blink])
    sd_C = with_NCT[has_blink].std(axis=(0, 2)) / without_NCT[has_blink].std(axis=(0, 2))
    front_C = np.array(recording.header.montage.positions_m)[:, 1]
    assert sd_C[front_C.argmax()] > 2
    assert sd_C[front_C.argmin()] < 1.5


def test_drift_is_slow_and_of_the_size_asked_for():
    drift_NCT = recorded(**{**NO_PICTURE, "drift_uV": 10.0})[2] - recorded(**NO_PICTURE)[2]
    offset_NC, slope_NC = drift_NCT.mean(axis=2), (drift_NCT[:, :, -1] - drift_NCT[:, :, 0]) / 2
    assert 7 < offset_NC.std() < 13
    assert 7 < slope_NC.std() < 13
    assert np.abs(np.diff(offset_NC, axis=0)).mean() < 3  # from one picture to the next, mostly within a block


# ---- what can be read out of it, and what cannot


def test_class_is_decoded_from_held_out_pictures():
    _, segments, eeg_NCT = recorded()
    hits, n, n_classes = class_hits(segments, eeg_NCT, np.isin(images_of(segments), held_out_images(segments)))
    assert p_above_chance(hits, n, n_classes) < 1e-6
    assert hits > 0.6 * n


def test_features_of_held_out_pictures_are_decoded():
    recording, segments, eeg_NCT = recorded(images_per_class=24, n_classes=4)
    images = recording.header.truth["images"]
    names = ("size", "red_green", "blue_yellow")
    own = [images[segment.image_id] for segment in segments]
    target_NK = np.array([[one["column"], *(one["features"][name] for name in names)] for one in own])
    is_test_N = np.isin(images_of(segments), held_out_images(segments))
    guess_NK = ridge(eeg_NCT, target_NK, is_test_N)
    error_K = ((guess_NK - target_NK[is_test_N]) ** 2).mean(axis=0) / target_NK[is_test_N].var(axis=0)
    assert (1 - error_K > 0.3).all(), dict(zip(("column", *names), 1 - error_K, strict=True))


def test_without_signal_class_cannot_be_decoded_though_the_recording_drifts():
    _, segments, eeg_NCT = recorded(**{**NO_PICTURE, "drift_uV": 12.0, "design": "random"})
    hits, n, n_classes = class_hits(segments, eeg_NCT, np.isin(images_of(segments), held_out_images(segments, 0.5)))
    assert p_above_chance(hits, n, n_classes) > 0.05
    assert hits < 0.35 * n


def test_blocks_and_drift_give_the_class_away_without_any_signal():
    _, segments, eeg_NCT = recorded(**{**NO_PICTURE, "drift_uV": 12.0, "design": "block"})
    hits, n, n_classes = class_hits(segments, eeg_NCT, np.isin(images_of(segments), held_out_images(segments, 0.5)))
    assert p_above_chance(hits, n, n_classes) < 1e-6
    assert hits > 0.5 * n


def test_blocks_without_drift_do_not_give_the_class_away():
    _, segments, eeg_NCT = recorded(**{**NO_PICTURE, "design": "block"})
    hits, n, n_classes = class_hits(segments, eeg_NCT, np.isin(images_of(segments), held_out_images(segments, 0.5)))
    assert p_above_chance(hits, n, n_classes) > 0.05


def test_a_block_left_out_does_not_give_its_class_away():
    # Every class has an even and an odd block at different times. The twelve segments of a block go together, so
    # their hits are no independent draws: the share is compared, not a binomial probability.
    shares = []
    for seed in range(4):
        _, segments, eeg_NCT = recorded(**{**NO_PICTURE, "drift_uV": 12.0, "design": "block", "seed": seed})
        hits, n, _ = class_hits(segments, eeg_NCT, np.array([segment.block % 2 == 1 for segment in segments]))
        shares.append(hits / n)
    assert np.mean(shares) < 0.35


# ---- presets and refusals


def test_presets_have_the_sizes_they_are_named_for():
    paper = PRESETS["paper"]
    assert (paper.n_subjects, paper.n_classes * paper.images_per_class, paper.n_classes) == (6, 2000, 40)
    assert (paper.n_chans, paper.n_times, paper.sfreq_hz) == (128, 440, 1000.0)
    assert all(preset.n_times / preset.sfreq_hz >= 0.44 - 1e-9 for preset in PRESETS.values())
    assert PRESETS["demo"] == Simulation()


def test_the_largest_cap_is_the_montage_without_reference_and_ground():
    recording = simulate(dataclasses.replace(TINY, n_chans=128, n_subjects=1, images_per_class=2, repetitions=1))
    channels = recording.header.montage.channels
    assert len(set(channels)) == 128
    assert not {"FCz", "Fpz"} & set(channels)
    sources = recording.header.truth["sources"]
    assert all(sources[site]["peak_channel"] == site for site in ("P8", "P7", "POO1", "POO2"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("snr", -1.0, r"simulation.snr is -1.0; expected at least 0"),
        ("snr", float("nan"), r"simulation.snr is nan"),
        ("n_classes", 81, r"n_classes is 81; expected 2 to 80"),
        ("n_chans", 129, r"n_chans is 129; expected 8 to 128"),
        ("n_times", 87, r"n_times is 87; expected at least 88: 0.44 s at 200 Hz"),
        ("blocks_per_class", 9, r"blocks_per_class is 9; expected 1 to images_per_class, 8"),
        ("design", "blocks", r"design is 'blocks'; expected random or block"),
        ("artefact_rate", 1.5, r"artefact_rate is 1.5; expected a share"),
        ("bad_channel_rate", 0.6, r"bad_channel_rate is 0.6"),
        ("drift_uV", float("inf"), r"drift_uV is inf"),
        ("image_px", 8, r"image_px is 8; expected 16 to 1024 px"),
        ("n_subjects", 0, r"n_subjects is 0"),
        ("images_per_class", 1, r"images_per_class is 1"),
        ("repetitions", 0, r"repetitions is 0"),
        ("sfreq_hz", 50.0, r"sfreq_hz is 50.0; expected 100 to 2000 Hz"),
        ("viewers", -1, r"viewers is -1"),
        ("seed", -1, r"seed is -1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_was_expected(field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TINY, **{field: value})
