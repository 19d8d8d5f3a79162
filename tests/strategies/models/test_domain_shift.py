"""Domain shift: divergence of BatchNorm inputs from the running statistics."""

import numpy as np
import pytest

from strategies.models.domain_shift import mean_shift
from strategies.models.features import Moments


def moments(offset: float, spread: float = 1.0, n: int = 40) -> Moments:
    """Return moments with this mean and standard deviation at every BatchNorm layer."""
    means = np.full((n, 8), offset, dtype=np.float32)
    squares = means**2 + np.float32(spread**2)
    layer = np.repeat([0, 1], 4)
    return Moments(means, squares, layer, np.array([0.2, 0.7]), np.array([1, 2]))


def test_images_with_pretraining_statistics_have_no_domain_shift() -> None:
    assert mean_shift(moments(0.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("far", [(1.0, 1.0), (0.0, 3.0), (0.0, 0.2)])
def test_another_mean_or_standard_deviation_is_a_domain_shift(far: tuple[float, float]) -> None:
    assert mean_shift(moments(*far)) > mean_shift(moments(0.1)) > 0
