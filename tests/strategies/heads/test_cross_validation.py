from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from strategies.core.folds import fold_numbers
from strategies.heads import cross_validation, principal_axes, solver
from strategies.heads.cross_validation import (
    STRENGTHS,
    Head,
    RegularisationPath,
    cross_validate,
    fit_head,
    out_of_fold,
    sample_weights,
)


@pytest.fixture(autouse=True)
def _no_variance_prior(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the prior on variances, to compare with reference solutions on plain z-scores."""
    if "prior" not in request.node.name:
        monkeypatch.setattr(principal_axes, "VARIANCE_PRIOR_ROWS", 0.0)


Data = tuple[np.ndarray, np.ndarray]


def _blobs(n: int, d: int, n_classes: int, spread: float = 1.0, seed: int = 0) -> Data:
    """Draw overlapping Gaussian classes, with columns of very different scale and offset."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    x = centres[labels] + spread * rng.normal(size=(n, d))
    return (10 ** rng.uniform(-2, 2, d) * x + rng.normal(size=d)).astype(np.float32), labels


def _scaled(x: np.ndarray) -> np.ndarray:
    """Standardise and scale to unit mean squared length, for which strengths are defined."""
    x = x.astype(np.float64)
    return (x - x.mean(0)) / (x.std(0) * np.sqrt(x.shape[1]))


def _softmax_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean())


def _hinge_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    sign = 2 * np.eye(scores.shape[1])[labels] - 1
    return float((np.maximum(1 - sign * scores, 0) ** 2).sum(1).mean())


def _in_scaled_space(head: Head, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias of a head for features transformed by `_scaled`."""
    x = x.astype(np.float64)
    weight = head.weight * x.std(0) * np.sqrt(x.shape[1])
    return weight, head.bias + head.weight @ x.mean(0)


def _objective(
    loss: Callable[[np.ndarray, np.ndarray], float],
    head: Head,
    x: np.ndarray,
    labels: np.ndarray,
    strength: float,
) -> float:
    weight, bias = _in_scaled_space(head, x)
    return loss(_scaled(x) @ weight.T + bias, labels) + strength / 2 * float((weight**2).sum())


@pytest.mark.parametrize("strength", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(("n", "d"), [(150, 12), (40, 90)])
def test_softmax_head_equals_the_optimum_of_scikit_learn(n: int, d: int, strength: float) -> None:
    x, labels = _blobs(n, d, 3, spread=2.0)
    # scikit-learn minimises C * sum of losses + |w|^2 / 2.
    reference = LogisticRegression(C=1 / (strength * n), tol=1e-9, max_iter=10_000)
    reference.fit(_scaled(x), labels)

    head = fit_head(x, labels, 3, strength)

    expected = reference.predict_proba(_scaled(x))
    np.testing.assert_allclose(softmax(head.scores(x), axis=1), expected, atol=0.01)
    theirs = _softmax_loss(reference.decision_function(_scaled(x)), labels)
    theirs += strength / 2 * float((reference.coef_**2).sum())
    assert _objective(_softmax_loss, head, x, labels, strength) <= theirs * 1.002 + 1e-7


@pytest.mark.parametrize("strength", [1e-2, 1e-4])
def test_two_classes_are_binary_logistic_regression(strength: float) -> None:
    n = 80
    x, labels = _blobs(n, 6, 2, spread=2.0)
    # Two opposite weight vectors share the penalty, so each has half of it.
    reference = LogisticRegression(C=2 / (strength * n), tol=1e-9, max_iter=10_000)
    reference.fit(_scaled(x), labels)

    found = softmax(fit_head(x, labels, 2, strength).scores(x), axis=1)

    np.testing.assert_allclose(found, reference.predict_proba(_scaled(x)), atol=0.01)


@pytest.mark.parametrize("strength", [1e-2, 1e-3])
@pytest.mark.parametrize(("n", "d"), [(120, 8), (30, 50)])
def test_svm_head_is_the_optimum_of_the_squared_hinge(n: int, d: int, strength: float) -> None:
    x, labels = _blobs(n, d, 3, spread=2.0)
    z = np.column_stack([_scaled(x), np.ones(n)])
    best = 0.0
    for c in range(3):
        sign = np.where(labels == c, 1.0, -1.0)

        def cost(w: np.ndarray, sign: np.ndarray = sign) -> tuple[float, np.ndarray]:
            short = np.maximum(1 - sign * (z @ w), 0)
            penalised = np.append(w[:-1], 0)
            value = (short**2).mean() + strength / 2 * penalised @ penalised
            return value, -2 / n * z.T @ (sign * short) + strength * penalised

        best += minimize(cost, np.zeros(d + 1), jac=True, options={"gtol": 1e-9}).fun

    head = fit_head(x, labels, 3, strength, loss="squared_hinge")

    found = _objective(_hinge_loss, head, x, labels, strength)
    assert best * (1 - 1e-4) <= found <= best * 1.005


@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_weaker_regularisation_lowers_the_train_loss(loss: str) -> None:
    x, labels = _blobs(100, 20, 4, spread=3.0)
    measure = _softmax_loss if loss == "softmax" else _hinge_loss
    losses = [measure(fit_head(x, labels, 4, s, loss=loss).scores(x), labels) for s in STRENGTHS]

    assert all(weaker <= stronger + 1e-4 for stronger, weaker in pairwise(losses))
    assert losses[-1] < losses[0]


def test_cross_validated_scores_are_those_of_heads_fitted_without_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross_validation, "FOLD_TOLERANCE", 1e-3)
    x, labels = _blobs(90, 10, 3, spread=2.0)
    folds = fold_numbers(labels, 0)
    path = RegularisationPath(strengths=[1e-2, 1e-3])
    held_out = range(int(folds.max()) + 1)
    scores = [*out_of_fold(x, labels, 3, path, folds=folds, held_out=held_out)]
    z = _scaled(x)

    for k in range(int(folds.max()) + 1):
        seen = folds != k
        for s, strength in enumerate(path.strengths):
            reference = LogisticRegression(C=1 / (strength * seen.sum()), tol=1e-8, max_iter=9999)
            expected = reference.fit(z[seen], labels[seen]).predict_proba(z[~seen])
            found = softmax(scores[s][~seen], axis=1)
            np.testing.assert_allclose(found, expected, atol=0.015)


def test_the_label_of_a_held_out_image_does_not_change_its_score() -> None:
    x, labels = _blobs(40, 6, 2)
    folds = fold_numbers(labels, 0)
    wrong = np.where(folds == 0, 1 - labels, labels)

    original = cross_validate(x, labels, 2, folds=folds, strengths=[1e-2])
    changed = cross_validate(x, wrong, 2, folds=folds, strengths=[1e-2])

    # All folds are solved together, so only the convergence may differ slightly.
    same, other = folds == 0, folds != 0
    np.testing.assert_allclose(original.scores[same], changed.scores[same], atol=0.05)
    assert np.abs(original.scores[other] - changed.scores[other]).max() > 0.5


def test_head_on_raw_features_equals_the_one_on_standardised_features() -> None:
    x, labels = _blobs(60, 8, 3)

    raw, standard = fit_head(x, labels, 3, 1e-3), fit_head(_scaled(x), labels, 3, 1e-3)

    np.testing.assert_allclose(
        raw.scores(x), standard.scores(_scaled(x).astype(np.float32)), atol=5e-3
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 1234.56])
@pytest.mark.parametrize("n", [12, 80])
def test_constant_features_do_not_change_the_scores(n: int, value: float) -> None:
    x, labels = _blobs(n, 20, 3)
    padded = np.column_stack([x, np.full((n, 20), value, dtype=np.float32)])

    head = fit_head(padded, labels, 3, 1e-3)

    expected = fit_head(x, labels, 3, 1e-3).scores(x)
    np.testing.assert_allclose(head.scores(padded), expected, atol=0.05)
    assert np.abs(head.weight[:, 20:]).max() == 0


def test_the_variance_prior_helps_on_few_images_with_rarely_active_features() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    x = rng.normal(size=(400, 40)).astype(np.float32)
    x[:, :5] += 1.5 * labels[:, None]
    x[:, 5:] *= rng.random((400, 35)) < 0.05  # zero on most images, as many features are

    def accuracy(n: int, prior_rows: float) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(principal_axes, "VARIANCE_PRIOR_ROWS", prior_rows)
            accuracies = []
            for first in range(0, 200, n):
                seen = slice(first, first + n)
                head = fit_head(x[seen], labels[seen], 2, 1e-2)
                accuracies.append(np.mean(head.scores(x[200:]).argmax(1) == labels[200:]))
        return float(np.mean(accuracies))

    assert accuracy(10, 30.0) > accuracy(10, 0.0) + 0.02
    assert accuracy(200, 30.0) == pytest.approx(accuracy(200, 0.0), abs=0.02)


def test_constant_features_alone_give_the_class_frequencies() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])

    head = fit_head(np.ones((100, 5), dtype=np.float32), labels, 3, 1e-3)

    found = softmax(head.scores(np.ones((1, 5), dtype=np.float32)), axis=1)
    np.testing.assert_allclose(found, [[0.6, 0.3, 0.1]], atol=0.01)


@pytest.mark.parametrize(("n", "d"), [(9, 200), (300, 5), (20, 20)])
@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_separable_classes_are_separated_for_any_shape(n: int, d: int, loss: str) -> None:
    x, labels = _blobs(n, d, 3, spread=0.02)

    head = fit_head(x, labels, 3, 1e-4, loss=loss)

    assert head.weight.shape == (3, d)
    assert head.bias.shape == (3,)
    assert (head.scores(x).argmax(1) == labels).all()


def test_temperature_divides_the_scores_of_a_head() -> None:
    x, labels = _blobs(30, 4, 3)

    plain = fit_head(x, labels, 3, 1e-2).scores(x)
    cooled = fit_head(x, labels, 3, 1e-2, temperature=2.5).scores(x)

    np.testing.assert_allclose(2.5 * cooled, plain, rtol=1e-3, atol=1e-4)


def test_the_same_input_gives_the_same_head() -> None:
    x, labels = _blobs(30, 40, 3)

    np.testing.assert_array_equal(
        fit_head(x, labels, 3, 1e-3).weight, fit_head(x, labels, 3, 1e-3).weight
    )


def test_the_only_image_of_a_class_is_misclassified_out_of_fold() -> None:
    x, labels = _blobs(41, 5, 2, spread=0.1)
    labels[-1] = 2
    x[-1] += 1000 * x.std(0)

    tried = cross_validate(x, labels, 3, folds=fold_numbers(labels, 0))

    assert np.isfinite(tried.scores).all()
    assert not tried.correct[:, -1].any()


@pytest.mark.parametrize("strength", [1e-2, 1e-3])
def test_balanced_class_weights_equal_those_of_scikit_learn(strength: float) -> None:
    x, labels = _blobs(120, 8, 3, spread=3.0)
    kept = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate((40, 20, 5))])
    x, labels = x[kept], labels[kept]
    weights = sample_weights(labels, "balanced").astype(np.float64)
    mean = np.average(x, axis=0, weights=weights)
    z = (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights) * x.shape[1])
    reference = LogisticRegression(
        C=1 / (strength * len(x)), class_weight="balanced", tol=1e-9, max_iter=10_000
    ).fit(z, labels)

    found = softmax(fit_head(x, labels, 3, strength, class_weight="balanced").scores(x), axis=1)

    np.testing.assert_allclose(found, reference.predict_proba(z), atol=0.01)
    np.testing.assert_allclose(np.bincount(labels, weights), len(labels) / 3, rtol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_solving_in_chunks_does_not_change_the_scores(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "FOLD_TOLERANCE", 1e-3)
    x, labels = _blobs(90, 10, 3, spread=2.0)
    folds = fold_numbers(labels, 0)
    whole = cross_validate(x, labels, 3, folds=folds, loss=loss, strengths=[1e-2, 1e-3])

    monkeypatch.setattr(solver, "MAX_SCORES", 1)
    monkeypatch.setattr(principal_axes, "_CHUNK", 7)
    parts = cross_validate(x, labels, 3, folds=folds, loss=loss, strengths=[1e-2, 1e-3])

    np.testing.assert_allclose(parts.scores, whole.scores, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_the_fold_tolerance_hardly_changes_the_best_accuracy_and_loss(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = _blobs(300, 40, 5, spread=2.5)
    folds = fold_numbers(labels, 0)
    fast = cross_validate(x, labels, 5, folds=folds, loss=loss)
    monkeypatch.setattr(cross_validation, "FOLD_TOLERANCE", 1e-4)
    exact = cross_validate(x, labels, 5, folds=folds, loss=loss)

    assert abs(fast.correct[fast.best].mean() - exact.correct[exact.best].mean()) <= 0.007
    assert fast.log_loss == pytest.approx(exact.log_loss, rel=0.02)
