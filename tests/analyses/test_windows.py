"""eegvision.analyses.windows: regions, bands, windows of constructed data; refusals."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from eegvision.analyses import windows
from eegvision.analyses.channels import Noise
from eegvision.analyses.windows import View, ViewScore, band_filtered, embed_view, rank_view, view_score
from eegvision.config import EegConfig, ImageConfig, LossConfig, RunConfig
from eegvision.encoders.joint import build_joint
from eegvision.ingest import simulate
from eegvision.vocab import InputError

# The order of THINGS-EEG2, by whose places NICE names its regions.
THINGS_NAMES = """
Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 C3 C1 Cz
C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2
"""
THINGS = THINGS_NAMES.split()
NAMES = ("Fz", "Cz", "T7", "Pz", "O1", "O2")
N_TIMES, SFREQ_HZ = 100, 200.0  # 0.5 s
NOISE = Noise(sfreq_hz=SFREQ_HZ, n_draws=3)
N_IMAGES = 8


class Matched:
    """The inner product of a segment with a pattern of each of eight pictures: phi(e)_m = sum of pattern_m e."""

    def __init__(self, pattern_MCT: torch.Tensor) -> None:
        self.pattern_MCT = pattern_MCT

    def encode_eeg(self, eeg_BCT: torch.Tensor, subject_B: torch.Tensor | None = None, /) -> torch.Tensor:
        assert subject_B is None
        if eeg_BCT.shape[1:] != self.pattern_MCT.shape[1:]:
            raise InputError("another length")
        return torch.einsum("mct,bct->bm", self.pattern_MCT, eeg_BCT)


def planted(channels: slice, samples: slice) -> tuple[Matched, torch.Tensor, list[str], dict[str, int]]:
    """A model, and three segments of each picture that hold its pattern here and white noise everywhere."""
    generator = torch.Generator().manual_seed(0)
    pattern_MCT = torch.zeros(N_IMAGES, len(NAMES), N_TIMES)
    shape = pattern_MCT[:, channels, samples].shape
    pattern_MCT[:, channels, samples] = torch.randn(shape, generator=generator)
    target_N = torch.arange(N_IMAGES).repeat(3)
    eeg_BCT = pattern_MCT[target_N] + 0.3 * torch.randn(24, len(NAMES), N_TIMES, generator=generator)
    ids = [f"{n:03d}" for n in range(24)]
    return Matched(pattern_MCT), eeg_BCT, ids, dict(zip(ids, target_N.tolist(), strict=True))


def score_of(world: Any, view: View, noise: Noise = NOISE) -> ViewScore:
    model, eeg_BCT, ids, target_of = world
    viewed = embed_view(model, eeg_BCT, ids, NAMES, view, noise)
    return view_score([rank_view(viewed, np.eye(N_IMAGES), target_of)])


# ---- regions


def test_regions_are_those_of_nice():
    region_of = {name: region for region, names in windows.regions_of(THINGS).items() for name in names}
    assert set(region_of) == set(THINGS)
    places = {
        region: [n for n, name in enumerate(THINGS) if region_of[name] == region] for region in region_of.values()
    }
    assert places["parietal"] == [*range(37, 44), *range(46, 55)]
    assert places["occipital"] == [*range(55, 63)]
    assert places["temporal"] == [15, 16, 17, *range(23, 28), *range(33, 37), 44, 45]
    assert places["frontal"] == [*range(15)]
    assert places["central"] == [18, 19, 20, 21, 22, 28, 29, 30, 31, 32]


def test_every_channel_of_the_128_has_a_region_and_what_is_no_place_has_none():
    found = windows.regions_of(simulate._choose_channels(128).channels)
    assert sum(map(len, found.values())) == 128
    assert windows.regions_of(("POO10h", "FCz", "CCP1h", "AFp3h", "Iz")) == {
        "frontal": ("AFp3h",),
        "central": ("FCz", "CCP1h"),
        "occipital": ("POO10h", "Iz"),
    }
    for name in ("MEG0113", "A1", "EOG", "Oz-ref"):
        with pytest.raises(InputError, match=f"channel '{name}' is no 10-05 name.*give `regions`"):
            windows.regions_of(("Cz", name))


def test_pictures_are_found_with_the_region_that_knows_them_and_not_without_it():
    world = planted(slice(4, 6), slice(None))
    views = windows.region_views(NAMES, windows.regions_of(NAMES))
    assert [view.name for view in views[:3]] == ["all", "only frontal", "without frontal"]
    found = {view.name: score_of(world, view) for view in views}
    for name in ("all", "only occipital", "without frontal", "without parietal"):
        assert found[name].accuracy == 1, name
        assert found[name].draw_error == 0
        assert found[name].margin_N.min() > 50
    for name in ("only frontal", "only temporal", "without occipital"):
        assert found[name].low < 1 / 8 < found[name].high < 0.5, name
        assert abs(found[name].margin_N.mean()) < 10, name
        assert found[name].draw_error > 0
    assert (found["all"].n_draws, found["only frontal"].n_draws) == (1, 3)
    assert found["all"].chance == 1 / 8
    assert (found["all"].n_images, len(found["all"].hit_N)) == (8, 24)


def test_a_region_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"region 'back' has \['Oz'\]; the segments have Fz, Cz"):
        windows.region_views(NAMES, {"back": ("O1", "Oz")})
    with pytest.raises(InputError, match="region 'front' has no channels"):
        windows.region_views(NAMES, {"front": ()})


# ---- bands


def wave(rate_hz: float, n_times: int = 500, sfreq_hz: float = 250.0) -> np.ndarray:
    return np.sin(2 * np.pi * rate_hz * np.arange(n_times) / sfreq_hz + 0.3)[None, None].astype(np.float32)


MIDDLE = slice(150, 350)  # where the ends of a segment are not felt


@pytest.mark.parametrize(("rate_hz", "is_in"), [(10.0, True), (4.0, False), (25.0, False), (60.0, False)])
def test_a_band_is_kept_or_removed_and_nothing_is_shifted(rate_hz, is_in):
    alone = band_filtered(wave(rate_hz), ((8.0, 12.0),), "kept", 250.0)
    rest = band_filtered(wave(rate_hz), ((8.0, 12.0),), "removed", 250.0)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone[..., MIDDLE], wave(rate_hz)[..., MIDDLE] * is_in, atol=0.03)
    np.testing.assert_allclose(rest[..., MIDDLE], wave(rate_hz)[..., MIDDLE] * (not is_in), atol=0.03)


def test_ranges_of_a_band_and_open_ends():
    gamma = windows.BANDS_HZ["gamma"]
    for rate_hz, is_in in ((38.0, True), (75.0, True), (20.0, False), (110.0, False)):
        alone = band_filtered(wave(rate_hz), gamma, "kept", 250.0)[..., MIDDLE]
        rest = band_filtered(wave(rate_hz), gamma, "removed", 250.0)[..., MIDDLE]
        np.testing.assert_allclose(alone, wave(rate_hz)[..., MIDDLE] * is_in, atol=0.03)
        np.testing.assert_allclose(rest, wave(rate_hz)[..., MIDDLE] * (not is_in), atol=0.03)
    mains = band_filtered(wave(50.0), gamma, "kept", 250.0)[..., MIDDLE]
    assert np.abs(mains).max() < 0.2, "five Hz from either edge"
    slow = 5 + wave(20.0)
    np.testing.assert_allclose(
        band_filtered(slow, ((0.0, 4.0),), "removed", 250.0)[..., MIDDLE], wave(20.0)[..., MIDDLE], atol=0.03
    )
    np.testing.assert_allclose(band_filtered(slow, ((0.0, 4.0),), "kept", 250.0)[..., MIDDLE], 5, atol=0.03)
    np.testing.assert_allclose(band_filtered(slow, ((12.0, 125.0),), "removed", 250.0)[..., MIDDLE], 5, atol=0.03)
    np.testing.assert_array_equal(band_filtered(slow, ((0.0, 200.0),), "kept", 250.0), slow)
    assert not band_filtered(slow, ((0.0, 200.0),), "removed", 250.0).any()


def test_butterworth_edges_are_at_half_amplitude():
    kept = band_filtered(wave(12.5, 2000), ((0.0, 12.5),), "kept", 250.0)[..., 500:1500]
    np.testing.assert_allclose(kept, wave(12.5, 2000)[..., 500:1500] / 2, atol=1e-3)


def test_bands_are_named_by_what_the_rate_allows():
    names = [view.name for view in windows.band_views(100.0)]
    assert names[0] == "all"
    assert names[-1] == "without gamma (32-45 Hz)"
    assert names[3:5] == ["only theta (4-8 Hz)", "without theta (4-8 Hz)"]
    assert windows.band_views(250.0)[-1].bands_hz == ((32.0, 45.0), (55.0, 95.0))
    assert not any("gamma" in view.name for view in windows.band_views(60.0))
    for band in ((130.0, 140.0), (8.0, 8.0), (-1.0, 4.0)):
        with pytest.raises(InputError, match="holds nothing of segments at 250 Hz"):
            band_filtered(wave(10.0), (band,), "kept", 250.0)


def test_pictures_told_by_a_rhythm_are_lost_with_its_band():
    time_s = torch.arange(N_TIMES) / SFREQ_HZ
    pattern_MCT = torch.zeros(N_IMAGES, len(NAMES), N_TIMES)
    phase_M = torch.arange(N_IMAGES) * 2 * torch.pi / N_IMAGES
    pattern_MCT[:, 0] = torch.cos(2 * torch.pi * 20 * time_s + phase_M[:, None])  # 10 whole waves
    target_N = torch.arange(N_IMAGES)
    eeg_BCT = pattern_MCT + 0.05 * torch.randn(pattern_MCT.shape, generator=torch.Generator().manual_seed(1))
    ids = [str(n) for n in range(N_IMAGES)]
    world = (Matched(pattern_MCT), eeg_BCT, ids, dict(zip(ids, target_N.tolist(), strict=True)))
    found = {view.name.partition(" (")[0]: score_of(world, view) for view in windows.band_views(SFREQ_HZ)}
    assert found["all"].accuracy == found["only beta"].accuracy == found["without alpha"].accuracy == 1
    full = found["all"].margin_N.mean()
    assert found["only beta"].margin_N.mean() > 0.9 * full
    assert abs(found["without beta"].margin_N.mean()) < 0.1 * full
    assert abs(found["only delta"].margin_N.mean()) < 0.1 * full
    assert found["without beta"].n_draws == 1, "a filter draws nothing"


# ---- windows

PLACE = {"t_min_s": 0.0, "sfreq_hz": SFREQ_HZ, "n_times": N_TIMES}


def test_windows_by_hand():
    assert [view.samples for view in windows.growing_windows(0.2, **PLACE)] == [(0, 40), (0, 80)]
    assert [view.samples for view in windows.shrinking_windows(0.2, **PLACE)] == [(0, 100), (40, 100), (80, 100)]
    assert [view.samples for view in windows.shrinking_windows(0.25, **PLACE)] == [(0, 100), (50, 100)]
    assert [view.samples for view in windows.sliding_windows(0.2, 0.1, **PLACE)] == [(0, 20), (40, 60), (80, 100)]
    early = {**PLACE, "t_min_s": -0.1}
    assert [view.samples for view in windows.growing_windows(0.2, **early)] == [(20, 60), (20, 100)]
    assert windows.growing_windows(0.2, **early)[0].name == "0 to 0.2 s"
    with pytest.raises(InputError, match=r"step_s is 0.6 with segments from 0 to 0.5 s"):
        windows.growing_windows(0.6, **PLACE)
    with pytest.raises(InputError, match=r"no window of 0.7 s fits"):
        windows.sliding_windows(0.1, 0.7, **PLACE)


def test_accuracy_rises_and_falls_where_the_answer_is_planted():
    world = planted(slice(None), slice(40, 60))  # 0.2 to 0.3 s
    growing = [score_of(world, view) for view in windows.growing_windows(0.1, **PLACE)]
    assert all(score.encoded == "noise outside" for score in growing[:-1])
    assert [score.accuracy == 1 for score in growing] == [False, False, True, True, True]
    assert all(score.accuracy < 0.5 for score in growing[:2])
    assert (growing[-1].encoded, growing[-1].n_draws) == ("segment", 1)  # all of it
    shrinking = [score_of(world, view).accuracy for view in windows.shrinking_windows(0.1, **PLACE)]
    assert shrinking[:3] == [1, 1, 1]
    assert max(shrinking[3:]) < 0.5
    sliding = [score_of(world, view).margin_N.mean() for view in windows.sliding_windows(0.05, 0.1, **PLACE)]
    assert int(np.argmax(sliding)) == 4
    assert sliding[0] < 0.2 * sliding[4]
    assert 0.3 * sliding[4] < sliding[3] < 0.7 * sliding[4]


def test_an_encoder_of_any_length_sees_the_excerpt_alone():
    torch.manual_seed(0)
    config = RunConfig(
        eeg=EegConfig(encoder="palazzo-gru", embed_dim=8, hidden=8),
        image=ImageConfig(embed_dim=8, size_px=16),
        loss=LossConfig(name="info_nce"),
    )
    model = build_joint(config, len(NAMES), N_TIMES, SFREQ_HZ).eval()
    _, eeg_BCT, ids, _ = planted(slice(None), slice(40, 60))
    found = embed_view(model, eeg_BCT, ids, NAMES, View(name="part", samples=(30, 70)), NOISE, batch_size=5)
    with torch.no_grad():
        expected_BD = model.encode_eeg(eeg_BCT[:, :, 30:70])
    assert (found.encoded, found.has_noise) == ("excerpt", False)
    np.testing.assert_allclose(found.eeg_NRD[:, 0], expected_BD.numpy(), atol=1e-6)


def scored(viewed: windows.Viewed, top_k: int = 1) -> ViewScore:
    return view_score([rank_view(viewed, np.eye(3), {"a": 1, "b": 0, "c": 2})], top_k=top_k)


def test_scores_by_hand():
    eeg_NRD = np.array([[[3.0, 1.0, 2.0]], [[5.0, 1.0, 0.0]], [[0.0, 0.0, 4.0]]])
    viewed = windows.Viewed(
        view=View(name="all"),
        noise=NOISE,
        segment_ids=("b", "a", "c"),
        eeg_NRD=eeg_NRD,
        has_noise=False,
        encoded="segment",
    )
    found = scored(viewed)
    assert found.segment_ids == ("a", "b", "c")
    np.testing.assert_array_equal(found.hit_N, [0, 1, 1])
    np.testing.assert_allclose(found.margin_N, [1 - 5 / 2, 3 - 3 / 2, 4])
    assert found.accuracy == pytest.approx(2 / 3)
    assert scored(viewed, top_k=2).accuracy == 1
    drawn = dataclasses.replace(viewed, eeg_NRD=np.concatenate([eeg_NRD, -eeg_NRD], axis=1), has_noise=True)
    twice = scored(drawn)
    np.testing.assert_allclose(twice.hit_N, [0, 0.5, 0.5])
    np.testing.assert_allclose(twice.draw_error, (2 / 3) / 2)  # accuracies 2/3 and 0


def test_chunks_and_their_order_do_not_matter():
    model, eeg_BCT, ids, target_of = planted(slice(0, 2), slice(20, 60))
    view = View(name="mixed", channels=NAMES[1:], samples=(10, 50), bands_hz=((4.0, 30.0),), band_is="kept")
    whole = score_of((model, eeg_BCT, ids, target_of), view)
    chunks = [[5, 3, 9], [*range(10, 24)], [0, 1, 2, 4, 6, 7, 8]]
    parts = [
        embed_view(model, eeg_BCT[rows], [ids[row] for row in rows], NAMES, view, NOISE, batch_size=2)
        for rows in chunks
    ]
    pieces = view_score([rank_view(part, np.eye(N_IMAGES), target_of) for part in parts])
    assert pieces.segment_ids == whole.segment_ids
    np.testing.assert_allclose(pieces.margin_N, whole.margin_N, atol=1e-4)
    assert (pieces.accuracy, pieces.low, pieces.high) == (whole.accuracy, whole.low, whole.high)


def test_views_and_chunks_that_do_not_fit_are_refused():
    model, eeg_BCT, ids, target_of = planted(slice(None), slice(None))
    for view in (View(name="odd", channels=("Oz",)), View(name="odd", samples=(0, 101)), View(name="odd", channels=())):
        with pytest.raises(InputError, match=r"view 'odd' shows channels .* and samples 0 to"):
            embed_view(model, eeg_BCT, ids, NAMES, view, NOISE)
    viewed = embed_view(model, eeg_BCT, ids, NAMES, View(name="all"), NOISE)
    with pytest.raises(InputError, match=r"1 gallery picture; .* among at least two"):
        rank_view(viewed, np.eye(1, N_IMAGES), dict.fromkeys(ids, 0))
    ranked = rank_view(viewed, np.eye(N_IMAGES), target_of)
    with pytest.raises(InputError, match="48 segments, 24 of them different"):
        view_score([ranked, ranked])
    with pytest.raises(InputError, match="segment '000' has no gallery picture"):
        rank_view(viewed, np.eye(N_IMAGES), {})
    other = dataclasses.replace(ranked, view=View(name="other"))
    with pytest.raises(InputError, match="2 chunks, not of one view"):
        view_score([ranked, other])
