from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from strategies.core import axes, probes, solver
from strategies.core.metrics import log_loss
from strategies.core.probes import (
    MAX_FOLDS,
    STRENGTHS,
    CrossValidated,
    Head,
    better_beyond_doubt,
    corrected_accuracy,
    cross_validate,
    fit_head,
    fold_numbers,
    one_error_rule,
    row_weights,
    temperature,
)

Data = tuple[np.ndarray, np.ndarray]


def _blobs(n: int, d: int, n_classes: int, spread: float = 1.0, seed: int = 0) -> Data:
    """Draw overlapping Gaussian classes, columns of very different scale and offset."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    x = centres[labels] + spread * rng.normal(size=(n, d))
    return (10 ** rng.uniform(-2, 2, d) * x + rng.normal(size=d)).astype(np.float32), labels


def _scaled(x: np.ndarray) -> np.ndarray:
    """Standardise, and scale to unit mean squared length, as the strengths are meant."""
    x = x.astype(np.float64)
    return (x - x.mean(0)) / (x.std(0) * np.sqrt(x.shape[1]))


def _softmax_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean())


def _hinge_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    sign = 2 * np.eye(scores.shape[1])[labels] - 1
    return float((np.maximum(1 - sign * scores, 0) ** 2).sum(1).mean())


def _in_scaled_space(head: Head, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias of a head on the features as `_scaled` has them."""
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
def test_softmax_head_is_the_optimum_that_scikit_learn_finds(
    n: int, d: int, strength: float
) -> None:
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
    # Two opposite weight vectors share the penalty, so each pays half of what one would.
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
def test_less_regularisation_fits_the_train_pictures_better(loss: str) -> None:
    x, labels = _blobs(100, 20, 4, spread=3.0)
    measure = _softmax_loss if loss == "softmax" else _hinge_loss
    losses = [measure(fit_head(x, labels, 4, s, loss=loss).scores(x), labels) for s in STRENGTHS]

    assert all(weaker <= stronger + 1e-4 for stronger, weaker in pairwise(losses))
    assert losses[-1] < losses[0]


def test_cross_validated_scores_are_those_of_heads_that_never_saw_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "FOLD_TOLERANCE", 1e-3)
    x, labels = _blobs(90, 10, 3, spread=2.0)
    folds = fold_numbers(labels, 0)
    tried = cross_validate(x, labels, 3, folds=folds, strengths=[1e-2, 1e-3])
    z = _scaled(x)

    for k in range(int(folds.max()) + 1):
        seen = folds != k
        for s, strength in enumerate(tried.strengths):
            reference = LogisticRegression(C=1 / (strength * seen.sum()), tol=1e-8, max_iter=9999)
            expected = reference.fit(z[seen], labels[seen]).predict_proba(z[~seen])
            found = softmax(tried.scores[s, ~seen], axis=1)
            np.testing.assert_allclose(found, expected, atol=0.015)


def test_label_of_a_left_out_picture_does_not_move_its_score() -> None:
    x, labels = _blobs(40, 6, 2)
    folds = fold_numbers(labels, 0)
    lied = np.where(folds == 0, 1 - labels, labels)

    honest = cross_validate(x, labels, 2, folds=folds, strengths=[1e-2])
    told = cross_validate(x, lied, 2, folds=folds, strengths=[1e-2])

    # All folds stop together, so convergence (only) may differ a little.
    np.testing.assert_allclose(honest.scores[:, folds == 0], told.scores[:, folds == 0], atol=0.05)
    assert np.abs(honest.scores[:, folds != 0] - told.scores[:, folds != 0]).max() > 0.5


def test_head_on_raw_features_equals_the_one_on_standardised_features() -> None:
    x, labels = _blobs(60, 8, 3)

    raw, standard = fit_head(x, labels, 3, 1e-3), fit_head(_scaled(x), labels, 3, 1e-3)

    np.testing.assert_allclose(
        raw.scores(x), standard.scores(_scaled(x).astype(np.float32)), atol=5e-3
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 1234.56])
@pytest.mark.parametrize("n", [12, 80])
def test_constant_features_change_nothing(n: int, value: float) -> None:
    x, labels = _blobs(n, 20, 3)
    padded = np.column_stack([x, np.full((n, 20), value, dtype=np.float32)])

    head = fit_head(padded, labels, 3, 1e-3)

    # Twice as many columns halve the scaled squares, hence half the strength.
    expected = fit_head(x, labels, 3, 2e-3).scores(x)
    np.testing.assert_allclose(head.scores(padded), expected, atol=0.05)
    assert np.abs(head.weight[:, 20:]).max() == 0


def test_features_that_say_nothing_at_all_give_the_class_shares() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])

    head = fit_head(np.ones((100, 5), dtype=np.float32), labels, 3, 1e-3)

    found = softmax(head.scores(np.ones((1, 5), dtype=np.float32)), axis=1)
    np.testing.assert_allclose(found, [[0.6, 0.3, 0.1]], atol=0.01)


@pytest.mark.parametrize(("n", "d"), [(9, 200), (300, 5), (20, 20)])
@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_separable_classes_are_separated_whatever_the_shape(n: int, d: int, loss: str) -> None:
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


def test_a_class_of_one_picture_is_judged_by_a_head_that_never_saw_it() -> None:
    x, labels = _blobs(41, 5, 2, spread=0.1)
    labels[-1] = 2
    x[-1] += 1000 * x.std(0)

    tried = cross_validate(x, labels, 3, folds=fold_numbers(labels, 0))

    assert np.isfinite(tried.scores).all()
    assert not tried.correct[:, -1].any()


@pytest.mark.parametrize("sizes", [(50, 50), (7, 30, 4), (11, 2, 3), (100, 5, 5, 6)])
def test_folds_are_balanced_within_every_class_and_overall(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)

    folds = fold_numbers(labels, 3)

    n_folds = folds.max() + 1
    assert n_folds == min(max(min(sizes), 2), MAX_FOLDS)
    for c in range(len(sizes)):
        counts = np.bincount(folds[labels == c], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    totals = np.bincount(folds)
    assert totals.max() - totals.min() <= 1


def test_folds_follow_their_seed() -> None:
    labels = np.arange(60) % 3

    np.testing.assert_array_equal(fold_numbers(labels, 1), fold_numbers(labels, 1))
    assert (fold_numbers(labels, 1) != fold_numbers(labels, 2)).any()


def test_folds_are_dealt_at_random() -> None:
    labels = np.zeros(1000, dtype=np.int64)

    folds = fold_numbers(labels, 0)

    assert abs(np.corrcoef(folds[1:], folds[:-1])[0, 1]) < 0.1


def test_number_of_folds_can_be_given() -> None:
    assert set(fold_numbers(np.arange(30) % 3, 0, n_folds=3)) == {0, 1, 2}


def test_a_class_that_does_not_occur_does_not_change_the_folds() -> None:
    assert fold_numbers(np.repeat([0, 2], 20), 0).max() == MAX_FOLDS - 1


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)

    found, loss = temperature(logits * true, labels)

    assert found == pytest.approx(true, rel=0.05)
    assert loss == pytest.approx(log_loss(logits * true / found, labels))


def test_the_best_strength_has_the_least_calibrated_loss() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    good = 2 * np.eye(3)[labels] + rng.normal(size=(400, 3))
    scores = np.stack([rng.normal(size=(400, 3)), 50 * good, good + 3 * rng.normal(size=(400, 3))])

    # Overconfidence alone is mended by the temperature, so it must not decide.
    assert CrossValidated(scores.astype(np.float32), labels, (3.0, 2.0, 1.0)).best == 1


def test_choosing_among_settings_of_pure_chance_is_not_optimistic() -> None:
    chance, n, naive, corrected, covered = 0.25, 60, [], [], []
    for seed in range(60):
        correct = np.random.default_rng(seed).random((20, n)) < chance
        interval = corrected_accuracy(correct, seed, draws=200)
        naive.append(correct.mean(axis=1).max())
        corrected.append(interval.mid)
        covered.append(interval.low <= chance <= interval.high)

    assert np.mean(corrected) == pytest.approx(chance, abs=0.02)
    assert np.mean(naive) > chance + 0.08
    assert np.mean(covered) >= 0.9


def test_labels_of_noise_are_not_learnt_according_to_cross_validation() -> None:
    judged = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, labels = rng.normal(size=(60, 30)).astype(np.float32), rng.permutation(60) % 3
        folds = fold_numbers(labels, seed)
        tried = cross_validate(x, labels, 3, folds=folds, strengths=STRENGTHS[:6:2])
        judged.append(corrected_accuracy(tried.correct, seed, draws=100).mid)

    assert np.mean(judged) == pytest.approx(1 / 3, abs=0.06)


def test_a_setting_that_is_plainly_best_keeps_its_accuracy() -> None:
    rng = np.random.default_rng(0)
    correct = np.stack([rng.random(400) < 0.9, rng.random(400) < 0.3])

    assert corrected_accuracy(correct, 0).mid == pytest.approx(correct[0].mean(), abs=0.01)


def test_a_single_setting_needs_no_correction() -> None:
    correct = np.arange(50)[None] % 5 > 0

    assert corrected_accuracy(correct, 0).mid == pytest.approx(0.8)


@pytest.mark.parametrize("settings", [1, 3])
def test_fewer_effective_pictures_widen_the_interval(settings: int) -> None:
    correct = np.random.default_rng(0).random((settings, 100)) < 0.7
    wide, narrow = corrected_accuracy(correct, 0, n_effective=20), corrected_accuracy(correct, 0)

    assert wide.mid == narrow.mid
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize("strength", [1e-2, 1e-3])
def test_balanced_classes_are_those_of_scikit_learn(strength: float) -> None:
    x, labels = _blobs(120, 8, 3, spread=3.0)
    kept = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate((40, 20, 5))])
    x, labels = x[kept], labels[kept]
    weights = row_weights(labels, "balanced").astype(np.float64)
    mean = np.average(x, axis=0, weights=weights)
    z = (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights) * x.shape[1])
    reference = LogisticRegression(
        C=1 / (strength * len(x)), class_weight="balanced", tol=1e-9, max_iter=10_000
    ).fit(z, labels)

    found = softmax(fit_head(x, labels, 3, strength, class_weight="balanced").scores(x), axis=1)

    np.testing.assert_allclose(found, reference.predict_proba(z), atol=0.01)
    np.testing.assert_allclose(np.bincount(labels, weights), len(labels) / 3, rtol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_memory_that_is_bounded_changes_nothing(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "FOLD_TOLERANCE", 1e-3)
    x, labels = _blobs(90, 10, 3, spread=2.0)
    folds = fold_numbers(labels, 0)
    whole = cross_validate(x, labels, 3, folds=folds, loss=loss, strengths=[1e-2, 1e-3])

    monkeypatch.setattr(solver, "MAX_HELD", 1)
    monkeypatch.setattr(axes, "_CHUNK", 7)
    parts = cross_validate(x, labels, 3, folds=folds, loss=loss, strengths=[1e-2, 1e-3])

    np.testing.assert_allclose(parts.scores, whole.scores, rtol=0.02, atol=0.02)


def test_a_few_pictures_that_are_all_right_do_not_make_certain() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    scores = np.eye(2)[labels]

    few, _ = temperature(scores, labels)
    many, _ = temperature(np.tile(scores, (100, 1)), np.tile(labels, 100))

    assert softmax(scores / few, axis=1).max() < 0.98
    assert softmax(scores / many, axis=1).max() > 0.995


def few_judged(n: int, true: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose temperature is known, and labels drawn from them."""
    logits = rng.normal(size=(n, 4)) * 2
    return logits * true, (logits + rng.gumbel(size=logits.shape)).argmax(1)


def test_a_known_spread_keeps_temperatures_of_few_pictures_near_1_and_those_of_many_free() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 3, 10, 100):
        free, kept = (
            np.log(temperature(*few_judged(n, 3.0, np.random.default_rng(n)), spread=spread)[0])
            for spread in (np.inf, 0.5)
        )
        assert 0 <= kept / free <= 1
    assert abs(np.log(temperature(*few_judged(1, 3.0, rng), spread=0.5)[0])) < 0.5
    assert temperature(*few_judged(20_000, 3.0, rng), spread=0.5)[0] == pytest.approx(3, rel=0.05)


def test_on_a_few_pictures_a_known_spread_calibrates_others_better() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(100):
        true = float(
            np.exp(rng.normal(0.3, np.log(2)))
        )  # networks are too sure more often than not
        scores, labels = few_judged(6, true, rng)
        others, truth = few_judged(500, true, rng)
        free, kept = (
            log_loss(others / temperature(scores, labels, spread=spread)[0], truth)
            for spread in (np.inf, np.log(2))
        )
        gains.append(free - kept)
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))


def test_another_setting_must_be_better_beyond_doubt_to_be_chosen() -> None:
    n = 100
    first = np.arange(n) < 60
    lucky = np.arange(n) < 63
    better, best = np.arange(n) < 80, np.arange(n) < 85

    assert better_beyond_doubt([first, lucky], [1.0, 0.5]) == 0
    assert better_beyond_doubt([first, lucky, better], [1.0, 0.1, 0.5]) == 2
    assert better_beyond_doubt([first, better, best], [1.0, 0.4, 0.5]) == 1
    assert better_beyond_doubt([best, first], [1.0, 0.1]) == 0


def test_the_first_setting_stands_until_another_loses_less_by_more_than_an_error() -> None:
    noise = np.random.default_rng(0).normal(size=100)
    first = 1 + noise
    unclear = first - 0.05 + np.tile([1.0, -1.0], 50)
    clear = first - 0.5 + 0.1 * np.random.default_rng(2).normal(size=100)

    assert one_error_rule([first, first, first + 0.1], [3, 1, 2]) == 0
    assert one_error_rule([first, unclear], [2, 1]) == 0
    assert one_error_rule([first, unclear, clear], [1, 1, 3]) == 2


def test_of_settings_that_are_as_good_as_the_best_the_cheapest_is_taken() -> None:
    rng = np.random.default_rng(0)
    first = 2 + rng.normal(size=100)
    best, near, far = (first - gain + 0.3 * rng.normal(size=100) for gain in (1.0, 0.99, 0.6))

    assert one_error_rule([first, best, near, far], [9, 3, 2, 1]) == 2
    assert one_error_rule([first, best, near, far], [9, 2, 3, 1]) == 1


def test_a_single_picture_decides_nothing() -> None:
    assert one_error_rule([np.array([1.0]), np.array([0.1])], [1, 1]) == 0


@pytest.mark.parametrize("loss", ["softmax", "squared_hinge"])
def test_the_best_of_a_path_that_is_solved_less_exactly_is_nearly_the_same(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = _blobs(300, 40, 5, spread=2.5)
    folds = fold_numbers(labels, 0)
    quick = cross_validate(x, labels, 5, folds=folds, loss=loss)
    monkeypatch.setattr(probes, "FOLD_TOLERANCE", 1e-4)
    exact = cross_validate(x, labels, 5, folds=folds, loss=loss)

    assert abs(quick.correct[quick.best].mean() - exact.correct[exact.best].mean()) <= 0.007
    assert quick.log_loss == pytest.approx(exact.log_loss, rel=0.02)
