"""eegvision.evaluate.probes: agreement with scikit-learn, choice of the penalty, scores by class, refusals."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eegvision.evaluate.probes import fit_probe
from eegvision.vocab import InputError


def blobs(n_items, n_classes=5, n_inputs=12, noise=1.5, seed=0):
    """Return correlated features of unequal scale around one centre per class, and unequal classes."""
    rng = np.random.default_rng(seed)
    centre, mixing = np.random.default_rng(99).normal(size=(2, n_classes + n_inputs, n_inputs))
    label = rng.integers(0, n_classes, n_items) * (rng.random(n_items) < 0.9)
    feature = centre[label] + noise * rng.normal(size=(n_items, n_inputs))
    return feature @ mixing[:n_inputs] * np.logspace(-2, 3, n_inputs) + 7, label


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_a_probe_is_the_multinomial_regression_of_scikit_learn(penalty):
    (train, label), (other, other_label) = blobs(600), blobs(200, seed=1)
    probe = fit_probe(train, label, other, other_label, penalties=(penalty,), tolerance=1e-8)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=1 / (600 * penalty), tol=1e-10, max_iter=100_000, solver="newton-cg")
    reference.fit(scaler.transform(train), label)
    np.testing.assert_allclose(probe.weight_DK, reference.coef_.T, atol=1e-6)
    np.testing.assert_allclose(probe.bias_K - probe.bias_K.mean(), reference.intercept_, atol=1e-6)
    difference = probe.class_scores(other) - reference.decision_function(scaler.transform(other))
    np.testing.assert_allclose(difference, difference[:, :1].repeat(5, axis=1), atol=1e-6)
    assert probe.validation.accuracy == reference.score(scaler.transform(other), other_label)


def test_two_classes_are_a_softmax_of_two():
    # The softmax of two classes penalised by λ is the logistic regression penalised by λ / 2.
    train, label = blobs(300, n_classes=2)
    probe = fit_probe(train, label, train, label, penalties=(0.1,), tolerance=1e-8)
    reference = LogisticRegression(C=2 / (300 * 0.1), tol=1e-10, max_iter=100_000)
    scaled = StandardScaler().fit_transform(train)
    reference.fit(scaled, label)
    score = probe.class_scores(train)
    np.testing.assert_allclose(score[:, 1] - score[:, 0], reference.decision_function(scaled), atol=1e-4)


def test_the_penalty_is_the_one_that_is_best_on_validation():
    train, label = blobs(60, n_inputs=40, noise=3)
    other, other_label = blobs(2000, n_inputs=40, noise=3, seed=1)
    penalties = (1e-5, 0.1, 10.0)
    probe = fit_probe(train, label, other, other_label, penalties=penalties)
    alone = [fit_probe(train, label, other, other_label, penalties=(penalty,)) for penalty in (10.0, 0.1, 1e-5)]
    # One item in 2000 may lie so near a border that rounding decides.
    np.testing.assert_allclose(probe.validation_accuracy_L, [one.validation.accuracy for one in alone], atol=1e-3)
    assert probe.penalties == (10.0, 0.1, 1e-5)
    assert probe.validation.accuracy == probe.validation_accuracy_L.max()
    assert probe.penalty == probe.penalties[int(probe.validation_accuracy_L.argmax())] == 0.1


def test_equal_accuracies_go_to_the_larger_penalty():
    train, label = np.array([[-1.0], [1.0]]).repeat(10, axis=0), np.arange(2).repeat(10)
    probe = fit_probe(train, label, train, label, penalties=(1e-3, 1.0, 1e-2))
    assert (probe.validation_accuracy_L == 1).all()
    assert probe.penalty == 1.0


def test_a_probe_finds_planted_classes_and_no_others():
    (train, label), (other, other_label), (test, test_label) = (blobs(500, seed=seed) for seed in range(3))
    score = fit_probe(train, label, other, other_label).score(test, test_label)
    assert score.accuracy > score.chance + 0.3
    shuffled = np.random.default_rng(0).permutation(label)
    score = fit_probe(train, shuffled, other, other_label).score(test, test_label)
    assert score.accuracy < score.chance + 0.05


def test_accuracy_by_class_by_hand():
    # One input, two classes at -1 and 1, names as text; the third class has no test item.
    train, label = np.array([[-1.0], [1.0], [50.0]]).repeat(5, axis=0), np.repeat(["axe", "bee", "cat"], 5)
    probe = fit_probe(train, label, train, label, penalties=(1e-6,))
    score = probe.score(np.array([[-1.0], [-1.0], [1.0], [1.0], [1.0]]), np.array(["axe", "bee", "bee", "bee", "bee"]))
    assert score.predicted_N.tolist() == ["axe", "axe", "bee", "bee", "bee"]
    np.testing.assert_array_equal(score.accuracy_K, [1, 0.75, np.nan])
    assert score.n_K.tolist() == [1, 4, 0]
    assert (score.accuracy, score.chance) == (0.8, 0.8)
    assert score.to_rows() == [
        {"class": None, "accuracy": 0.8, "chance": 0.8, "n": 5},
        {"class": "axe", "accuracy": 1.0, "chance": 0.8, "n": 1},
        {"class": "bee", "accuracy": 0.75, "chance": 0.8, "n": 4},
    ]


def test_only_train_decides_the_scale():
    (train, label), (other, other_label) = blobs(200), blobs(50, seed=1)
    probe = fit_probe(train, label, other, other_label, penalties=(0.1,))
    shifted = fit_probe(train, label, other + 1000, other_label, penalties=(0.1,))
    np.testing.assert_array_equal(probe.weight_DK, shifted.weight_DK)
    np.testing.assert_allclose(probe.mean_D, train.mean(axis=0))


def test_a_constant_dimension_changes_nothing_on_train_nor_elsewhere():
    (train, label), (other, other_label) = blobs(200), blobs(50, seed=1)
    probe = fit_probe(train, label, other, other_label, penalties=(0.1,), tolerance=1e-8)
    for constant in (0.0, 0.1, 1e6):
        wide, other_wide = np.column_stack([train, np.full(200, constant)]), np.column_stack([other, np.full(50, 9.0)])
        wider = fit_probe(wide, label, other_wide, other_label, penalties=(0.1,), tolerance=1e-8)
        np.testing.assert_allclose(wider.class_scores(other_wide), probe.class_scores(other), atol=1e-5)


def test_a_probe_is_the_same_every_time():
    (train, label), (other, other_label) = blobs(200), blobs(50, seed=1)
    first, second = (fit_probe(train, label, other, other_label) for _ in range(2))
    np.testing.assert_array_equal(first.weight_DK, second.weight_DK)


def test_probes_refuse_what_they_cannot_learn():
    train, label = blobs(30)
    with pytest.raises(InputError, match="class 9 is not among the"):
        fit_probe(train, label, train[:1], np.array([9]))
    with pytest.raises(InputError, match="class 9 is not among the"):
        fit_probe(train, label, train, label).score(train[:1], np.array([9]))
    with pytest.raises(InputError, match="1 classes"):
        fit_probe(train, np.zeros(30), train, np.zeros(30))
    with pytest.raises(InputError, match="all above 0"):
        fit_probe(train, label, train, label, penalties=(0.0, 1.0))
    with pytest.raises(InputError, match="embedding 0 is not finite"):
        fit_probe(train * np.nan, label, train, label)
    with pytest.raises(InputError, match="one label for each"):
        fit_probe(train, label[:-1], train, label)
    with pytest.raises(InputError, match="the probe knows 12"):
        fit_probe(train, label, train, label).class_scores(train[:, :3])
    with pytest.raises(InputError, match="give a larger penalty or a tolerance above"):
        fit_probe(train, label, train, label, penalties=(1e-5,), tolerance=1e-300)
