"""Domain shift: divergence of the embedded network's BatchNorm inputs, whatever is adapted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, load_dataset
from strategies.models import domain_shift as module
from strategies.models.domain_shift import SHIFT_PX, mean_shift, measure_moments
from strategies.models.moments import Moments


def moments(offset: float, spread: float = 1.0, n: int = 40) -> Moments:
    """Return moments with this mean and standard deviation at every BatchNorm layer."""
    means = np.full((n, 8), offset, dtype=np.float32)
    squares = means**2 + np.float32(spread**2)
    layer = np.repeat([0, 1], 4)
    return Moments(means, squares, layer, np.array([1, 2]))


def test_images_with_pretraining_statistics_have_no_domain_shift() -> None:
    assert mean_shift(moments(0.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("far", [(1.0, 1.0), (0.0, 3.0), (0.0, 0.2)])
def test_another_mean_or_standard_deviation_is_a_domain_shift(far: tuple[float, float]) -> None:
    assert mean_shift(moments(*far)) > mean_shift(moments(0.1)) > 0


def test_the_shift_does_not_depend_on_the_order_of_the_images(
    small_dataset: Dataset, ctx: RunContext
) -> None:
    images = small_dataset.fit_split
    shift, reverse = (
        mean_shift(measure_moments(some, ctx).moments) for some in (images, images[::-1])
    )
    assert reverse == pytest.approx(shift, abs=1e-9)


def test_at_most_a_fixed_number_of_images_is_measured_evenly_over_the_classes(
    make_folder: Callable[..., Path], ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(make_folder("d", 8))
    monkeypatch.setattr(module, "SHIFT_IMAGES", 9)
    found = measure_moments(dataset.fit_split, ctx)
    assert np.bincount(found.labels).tolist() == [3, 3, 3]
    assert len(found.moments.mean) == 9
    assert ctx.cache.info().n_rows >= 9
    other = measure_moments(dataset.fit_split, replace(ctx, seed=1))
    assert not np.array_equal(other.moments.mean, found.moments.mean)


def test_the_forward_pass_is_reported_as_a_phase_of_its_own(
    small_dataset: Dataset, ctx: RunContext
) -> None:
    phases = []

    def report(what: str, done: int, total: int) -> None:
        phases.append(what)

    measure_moments(small_dataset.train, replace(ctx, reporter=Reporter(report)))
    assert set(phases) == {"similarity"}


def test_the_shift_is_measured_with_the_embedded_network_at_one_size() -> None:
    network = module.shift_network()
    assert (network.name, network.input_px) == ("tf_efficientnet_lite0", SHIFT_PX)
