"""Learning curve: measured on subsamples and extrapolated by a power law."""

from itertools import pairwise

import numpy as np
import pytest

from advisor.measure.learning_curve import extrapolate, learning_curve
from advisor.types.profile import LearningCurve
from strategies.core.metrics import proportion


def curve_of(n_per_class: int, spread: float, seed: int = 0) -> LearningCurve:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), n_per_class)
    x = rng.normal(0, 1, (len(labels), 40)).astype(np.float32)
    x[np.arange(len(labels)), labels] += spread
    last = (0.8 * n_per_class, proportion(0.9, len(labels)))
    groups = np.arange(len(labels))
    return learning_curve(x, labels, 3, last=last, strength=1e-3, groups=groups, seed=seed)


def test_accuracy_is_measured_from_few_images_to_many() -> None:
    curve = curve_of(80, 3.0)
    sizes = [n for n, _ in curve.measured]
    assert sizes == sorted(sizes)
    assert sizes == pytest.approx([10, 20, 40, 64])
    assert curve.measured[2][1].mid > curve.measured[0][1].mid


def test_a_subsample_without_images_of_a_class_is_skipped() -> None:
    curve = curve_of(5, 3.0)
    assert all(n >= 1 for n, _ in curve.measured)
    assert curve.measured[-1][0] == 4


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
def test_the_extrapolation_never_falls_and_never_exceeds_one(spread: float) -> None:
    curve = curve_of(40, spread)
    accuracies = [curve.measured[-1][1].mid, *(a.mid for _, a in curve.extrapolated)]
    assert all(later >= earlier for earlier, later in pairwise(accuracies))
    assert all(a.high <= 1 for _, a in curve.extrapolated)


def test_an_exact_power_law_is_extrapolated() -> None:
    points = [(n, proportion(1 - 0.9 * n**-0.5, 1e5)) for n in (10.0, 20.0, 40.0, 80.0)]
    found = extrapolate(points, 320)
    assert found.low <= 1 - 0.9 * 320**-0.5 <= found.high
    assert 1 - found.mid < (1 - points[-1][1].mid) * 4**-0.4


def test_a_group_of_images_is_not_split_between_training_and_evaluation() -> None:
    labels = np.tile([0, 1], 40)
    groups = np.repeat(np.arange(20), 4)
    x = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    copies = x[groups * 4] + 1e-3 * x
    last = (32.0, proportion(0.5, 80))
    curve = learning_curve(copies, labels, 2, last=last, strength=1e-4, groups=groups, seed=0)
    assert all(a.mid < 0.75 for _, a in curve.measured)
