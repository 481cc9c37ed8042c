"""A softmax probe on frozen embeddings: what a linear classifier reads out of them.

Axes: N items, D embedding, K classes, L penalties tried.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from eegvision.evaluate.retrieval import check_vectors
from eegvision.vocab import InputError

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeScore:
    """Accuracy of a probe on one side of a split.

    `accuracy_K` and `n_K` follow `class_K`; a class without items has accuracy NaN. `chance` is what the best constant
    answer would score, the share of the largest class.
    """

    accuracy: float
    chance: float
    class_K: np.ndarray
    accuracy_K: np.ndarray
    n_K: np.ndarray
    label_N: np.ndarray
    predicted_N: np.ndarray

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for all items (class None), then one for each class that has items."""
        overall = {"class": None, "accuracy": self.accuracy, "chance": self.chance, "n": len(self.label_N)}
        return [overall] + [
            {"class": label, "accuracy": float(accuracy), "chance": self.chance, "n": int(n)}
            for label, accuracy, n in zip(self.class_K.tolist(), self.accuracy_K, self.n_K, strict=True)
            if n
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A fitted probe: class scores are ((x - mean) / scale) · weight + bias.

    `penalty` was chosen among `penalties` for its accuracy on validation, `validation_accuracy_L` in the same order.
    """

    class_K: np.ndarray
    mean_D: np.ndarray
    scale_D: np.ndarray
    weight_DK: np.ndarray
    bias_K: np.ndarray
    penalty: float
    penalties: tuple[float, ...]
    validation_accuracy_L: np.ndarray
    validation: ProbeScore

    def class_scores(self, embedding_ND: np.ndarray) -> np.ndarray:
        """Unnormalised log-probability of each class, float64 of shape (N, K)."""
        embedding_ND = check_vectors(embedding_ND, "embedding")
        if embedding_ND.shape[1] != len(self.mean_D):
            raise InputError(f"embeddings have {embedding_ND.shape[1]} dimensions; the probe knows {len(self.mean_D)}")
        return ((embedding_ND - self.mean_D) / self.scale_D) @ self.weight_DK + self.bias_K

    def score(self, embedding_ND: np.ndarray, label_N: np.ndarray) -> ProbeScore:
        """Accuracy on other items, usually the test side.

        Raises:
            InputError: shapes disagree, or a label the probe was not trained on.
        """
        label_N = np.asarray(label_N)
        _class_numbers(self.class_K, label_N, len(embedding_ND))
        return _score(self.class_K, self.class_scores(embedding_ND), label_N)


def fit_probe(
    train_ND: np.ndarray,
    train_label_N: np.ndarray,
    validation_ND: np.ndarray,
    validation_label_N: np.ndarray,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    tolerance: float = 1e-5,
) -> Probe:
    """Fit a softmax layer for each penalty on train and keep the one that is best on validation.

        min_{W,b}  -(1/N) Σ_n log softmax(x_n W + b)[y_n] + (λ/2) ‖W‖²        x standardised with train's mean and SD

    The bias is not penalised. λ = 1 / (N C) in the notation of libraries that weigh the loss by C. Equal accuracies go
    to the larger penalty. Deterministic: L-BFGS from zero, largest penalty first, each from the weights of the one
    before. The test side is not seen here; `Probe.score` opens it.

    Args:
        train_ND, validation_ND: embeddings; a dimension without spread on train is left at zero.
        train_label_N, validation_label_N: integer or text labels.
        penalties: the λ to try, each above 0.
        tolerance: largest gradient entry at which a fit ends, where inputs are scaled so that curvature starts at one.
    Raises:
        InputError: shapes disagree, fewer than two classes, a validation label missing from train, a value that is not
            finite, a penalty that is not positive, or a fit that does not reach the tolerance.
    """
    train_ND, validation_ND = check_vectors(train_ND, "embedding"), check_vectors(validation_ND, "embedding")
    train_label_N, validation_label_N = np.asarray(train_label_N), np.asarray(validation_label_N)
    if not penalties or min(penalties) <= 0:
        raise InputError(f"penalties are {penalties}; expected at least one, all above 0")
    class_K = np.unique(train_label_N)
    if len(class_K) < 2:
        raise InputError(f"train has {len(class_K)} classes; a probe takes at least two")
    number_N = _class_numbers(class_K, train_label_N, len(train_ND))
    _class_numbers(class_K, validation_label_N, len(validation_ND))
    mean_D, scale_D = train_ND.mean(axis=0, dtype=np.float64), train_ND.std(axis=0, dtype=np.float64)
    # A constant dimension keeps a spread of rounding errors, which must not be blown up to one.
    scale_D = np.where(scale_D > 1e-7 * (np.abs(mean_D) + scale_D.max()), scale_D, np.inf)
    standard_ND = (train_ND - mean_D) / scale_D
    ordered = tuple(sorted(set(penalties), reverse=True))
    probes: list[Probe] = []
    weights = np.zeros((train_ND.shape[1], len(class_K))), np.zeros(len(class_K))
    rotation = np.linalg.eigh(standard_ND.T @ standard_ND / len(standard_ND))
    rotated_ND = standard_ND @ rotation.eigenvectors
    for penalty in ordered:
        weights = _fit(rotated_ND, number_N, rotation.eigenvalues, penalty, *weights, tolerance)
        weight_DK = rotation.eigenvectors @ weights[0]
        class_score_NK = ((validation_ND - mean_D) / scale_D) @ weight_DK + weights[1]
        probes.append(
            Probe(
                class_K=class_K,
                mean_D=mean_D,
                scale_D=scale_D,
                weight_DK=weight_DK,
                bias_K=weights[1],
                penalty=penalty,
                penalties=ordered,
                validation_accuracy_L=np.empty(0),
                validation=_score(class_K, class_score_NK, validation_label_N),
            )
        )
    accuracy_L = np.array([probe.validation.accuracy for probe in probes])
    return dataclasses.replace(probes[int(accuracy_L.argmax())], validation_accuracy_L=accuracy_L)


def _fit(
    rotated_ND: np.ndarray,
    number_N: np.ndarray,
    variance_D: np.ndarray,
    penalty: float,
    weight_DK: np.ndarray,
    bias_K: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the objective of `fit_probe` over uncorrelated inputs, starting from the given weights.

    At zero weights the Hessian in direction d is variance_d / K + λ between classes. Measuring W in units of its
    inverse root makes every direction equally curved, which is what L-BFGS is fast on.
    """
    n_items, n_inputs = rotated_ND.shape
    n_classes = len(bias_K)
    unit_D1 = 1 / np.sqrt(np.maximum(variance_D, 0) / n_classes + penalty)[:, None]
    bias_unit = n_classes**0.5
    scaled_ND = rotated_ND * unit_D1.T
    row_N = np.arange(n_items)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameter_EK = flat.reshape(n_inputs + 1, n_classes)
        scaled_DK = parameter_EK[:-1]
        log_p_NK = scaled_ND @ scaled_DK + bias_unit * parameter_EK[-1]
        log_p_NK -= log_p_NK.max(axis=1, keepdims=True)
        p_NK = np.exp(log_p_NK)
        total_N1 = p_NK.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total_N1[:, 0]) - log_p_NK[row_N, number_N]))
        p_NK /= total_N1
        p_NK[row_N, number_N] -= 1
        gradient_EK = np.empty_like(parameter_EK)
        shrunk_DK = penalty * unit_D1**2 * scaled_DK
        gradient_EK[:-1] = scaled_ND.T @ p_NK / n_items + shrunk_DK
        gradient_EK[-1] = bias_unit * p_NK.mean(axis=0)
        return loss + 0.5 * float((shrunk_DK * scaled_DK).sum()), gradient_EK.ravel()

    start = np.concatenate([weight_DK / unit_D1, bias_K[None] / bias_unit]).ravel()
    # ftol = 0: only the gradient decides, since a flat objective stops improving long before the weights settle.
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 20_000, "maxfun": 40_000, "maxcor": 20}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    steepest = np.abs(found.jac).max()
    if steepest > 10 * tolerance:
        raise InputError(
            f"the probe with penalty {penalty} stopped at a gradient of {steepest:.1e} ({found.message}); "
            f"give a larger penalty or a tolerance above {tolerance}"
        )
    parameter_EK = found.x.reshape(n_inputs + 1, n_classes)
    return parameter_EK[:-1] * unit_D1, parameter_EK[-1] * bias_unit


def _class_numbers(class_K: np.ndarray, label_N: np.ndarray, n_items: int) -> np.ndarray:
    """Place of each label in `class_K`; raise `InputError` where counts disagree or a label is unknown."""
    if label_N.shape != (n_items,) or n_items == 0:
        raise InputError(f"{n_items} embeddings and labels of shape {label_N.shape}; expected one label for each")
    number_N = np.searchsorted(class_K, label_N).clip(max=len(class_K) - 1)
    if (class_K[number_N] != label_N).any():
        missing = label_N[class_K[number_N] != label_N].tolist()[0]
        raise InputError(f"class {missing!r} is not among the {len(class_K)} classes of train; split so that it is")
    return number_N


def _score(class_K: np.ndarray, class_score_NK: np.ndarray, label_N: np.ndarray) -> ProbeScore:
    number_N = _class_numbers(class_K, label_N, len(class_score_NK))
    predicted_N = class_K[class_score_NK.argmax(axis=1)]
    is_right_N = predicted_N == label_N
    n_K = np.bincount(number_N, minlength=len(class_K))
    right_K = np.bincount(number_N[is_right_N], minlength=len(class_K))
    return ProbeScore(
        accuracy=float(is_right_N.mean()),
        chance=float(n_K.max() / n_K.sum()),
        class_K=class_K,
        accuracy_K=np.where(n_K > 0, right_K / np.maximum(n_K, 1), np.nan),
        n_K=n_K,
        label_N=label_N,
        predicted_N=predicted_N,
    )
