"""eegvision.evaluate.curves: hand-worked values, planted signal, the null beside it, refusals."""

from itertools import combinations

import numpy as np
import pytest

from eegvision.evaluate.curves import average_repetitions, repetition_curve
from eegvision.evaluate.retrieval import ranks, similarity
from eegvision.vocab import InputError


def recording(signal, n_images=20, n_repetitions=16, n_dimensions=30, seed=0):
    """Return segments in random order, their images, and the images' features."""
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=(n_images, n_dimensions))
    image = rng.permutation(np.repeat(np.arange(n_images), n_repetitions))
    return signal * feature[image] + rng.normal(size=(len(image), n_dimensions)), image, feature


def curve_of(segment, image, feature, **options):
    return repetition_curve(segment, image, image, lambda mean: similarity(mean, feature, normalise="both"), **options)


def test_averaging_pays_where_there_is_a_signal():
    curve = curve_of(*recording(0.2), counts=(1, 4, 16), n_permutations=499)
    assert curve.accuracy_P[0] + 0.2 < curve.accuracy_P[1] < curve.accuracy_P[2]
    assert curve.p_P.tolist() == [1 / 500] * 3
    assert (curve.low_P < curve.accuracy_P).all()
    assert (curve.accuracy_P < curve.high_P).all()
    assert curve.low_P[2] > curve.null_high_P[2]


def test_averaging_does_not_pay_where_there_is_none():
    # 40 recordings without signal; the curve under the null stays at chance however much is averaged.
    p, accuracy = [], []
    for seed in range(40):
        curve = curve_of(*recording(0, seed=seed), counts=(1, 4, 16), n_draws=5, n_permutations=199, seed=seed)
        p.append(curve.p_P)
        accuracy.append(curve.accuracy_P)
        assert (np.abs(curve.null_mean_P - curve.chance) < 0.01).all()
    assert np.abs(np.mean(accuracy, axis=0) - 1 / 20).max() < 0.02
    assert (np.array(p) <= 0.05).mean() < 0.1


def test_a_constant_pattern_in_all_segments_is_no_evidence():
    # Averaging brings out a pattern common to all images; every query then names the same item.
    segment, image, feature = recording(0)
    curve = curve_of(segment + 5 * feature[3], image, feature, counts=(1, 16), n_permutations=199)
    np.testing.assert_allclose(curve.accuracy_P, 1 / 20)
    assert (curve.p_P > 0.5).all()


def test_all_repetitions_leave_nothing_to_draw():
    segment, image, feature = recording(0.2)
    curve = curve_of(segment, image, feature, counts=[16], n_draws=4, n_permutations=50)
    mean = np.stack([segment[image == number].mean(axis=0) for number in range(20)])
    assert curve.accuracy_P[0] == (ranks(similarity(mean, feature, normalise="both"), np.arange(20)) <= 1).mean()
    assert curve.draw_sd_P[0] == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mean_over_draws_approaches_the_mean_over_all_subsets(count):
    # Two images, four repetitions, already scored: averaging the scores and ranking them.
    score = np.random.default_rng(0).normal(size=(8, 2))
    image = np.repeat([7, 5], 4)
    target = np.where(image == 7, 0, 1)
    exact = np.mean(
        [
            np.mean([score[image == number][list(subset)].mean(axis=0).argmax() == column])
            for number, column in ((7, 0), (5, 1))
            for subset in combinations(range(4), count)
        ]
    )
    curve = repetition_curve(
        score, image, target, lambda mean_IN: mean_IN, counts=[count], n_draws=2000, n_permutations=10
    )
    assert curve.accuracy_P[0] == pytest.approx(exact, abs=0.03)


def test_subsets_are_drawn_without_replacement_and_nested():
    image = np.repeat(np.arange(3), 6)
    seen: list[np.ndarray] = []

    def remembered(segment_IR):
        seen.append(segment_IR.copy())
        return np.eye(3)

    repetition_curve(
        np.arange(18), image, image, lambda score: score, counts=(2, 5), average=remembered, n_draws=3, n_permutations=5
    )
    assert [subset.shape for subset in seen] == [(3, 2), (3, 5)] * 3
    for small, large in zip(seen[::2], seen[1::2], strict=True):
        for number in range(3):
            assert len(set(large[number])) == 5
            assert set(small[number]) <= set(large[number]) <= set(range(6 * number, 6 * number + 6))
    assert (seen[0] != seen[2]).any()


def test_another_way_to_average_is_used():
    segment, image, feature = recording(0.3)
    segment[::7] *= 1000
    plain = curve_of(segment, image, feature, counts=[16], n_permutations=10)
    robust = curve_of(segment, image, feature, counts=[16], n_permutations=10, average=lambda x: np.median(x, axis=1))
    assert robust.accuracy_P[0] > plain.accuracy_P[0] + 0.2


def test_half_precision_is_averaged_in_single():
    value = np.full((1, 5000), 10, dtype=np.float16)
    assert average_repetitions(value).dtype == np.float32
    assert average_repetitions(value)[0] == 10


def test_a_curve_depends_on_the_seed_alone():
    data = recording(0.2)
    first, again, other = (
        curve_of(*data, counts=(1, 2), n_permutations=20, n_draws=3, seed=seed).to_rows() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_rows_carry_what_the_curve_needs_to_be_read():
    rows = curve_of(*recording(0.2), counts=(4, 1), top_k=5, n_draws=3, n_permutations=20).to_rows()
    assert [row["repetitions"] for row in rows] == [1, 4]
    assert rows[0].keys() == {
        *("repetitions", "accuracy", "draw_sd", "low", "high", "null_mean", "null_high", "p"),
        *("metric", "chance", "level", "n_images", "n_gallery", "n_draws"),
    }
    assert (rows[0]["metric"], rows[0]["chance"], rows[0]["n_images"], rows[0]["n_gallery"]) == ("top-5", 0.25, 20, 20)
    assert np.isnan(curve_of(*recording(0.2), counts=[1], n_draws=1, n_permutations=20).draw_sd_P[0])


def test_curves_refuse_more_repetitions_than_there_are():
    segment, image, feature = recording(0.2)
    keep = np.sort(np.argsort(image, kind="stable")[1:])
    with pytest.raises(InputError, match=r"1\.\.15, the repetitions of image 0"):
        curve_of(segment[keep], image[keep], feature, counts=(1, 16))
    with pytest.raises(InputError, match=r"counts \[0\]"):
        curve_of(segment, image, feature, counts=[0])
    with pytest.raises(InputError, match="0 draws"):
        curve_of(segment, image, feature, counts=[1], n_draws=0)
    with pytest.raises(InputError, match="one image and one target per segment"):
        curve_of(segment, image[:-1], feature, counts=[1])
    target = image.copy()
    target[np.flatnonzero(image == 4)[0]] = 5
    with pytest.raises(InputError, match="image 4 has more than one target"):
        repetition_curve(segment, image, target, lambda mean: mean, counts=[1])
