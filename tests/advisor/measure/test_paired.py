import numpy as np
import pytest

from advisor.measure.paired import loss_gain, paired_gain


@pytest.mark.parametrize("n", [30, 300])
def test_a_paired_gain_keeps_its_sign_and_narrows_with_images(n: int) -> None:
    better = np.arange(n) % 10 != 0
    worse = np.arange(n) % 3 != 0
    gain, loss = paired_gain(better, worse), paired_gain(worse, better)
    assert gain.mid == -loss.mid > 0
    assert gain.low == pytest.approx(-loss.high)
    same = paired_gain(better, better)
    assert same.low < 0 < same.high


def test_the_interval_of_a_gain_in_log_loss_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.gamma(0.5, 0.8, (2, 2000, 60))
    shared = rng.gamma(0.5, 1.0, (2000, 60))
    found = [loss_gain(a + s, b + s) for a, b, s in zip(own, 2 * other, shared, strict=True)]
    truth = np.log((0.5 + 0.8) / (0.5 + 0.4))
    coverage = np.mean([i.low <= truth <= i.high for i in found])
    assert 0.86 < coverage < 0.97
    assert np.mean([i.mid for i in found]) == pytest.approx(truth, abs=0.03)


def test_losses_that_round_to_zero_have_no_gain_over_each_other() -> None:
    none, some = np.zeros(20), np.full(20, 0.1)
    assert loss_gain(none, none).mid == 0
    assert loss_gain(none, some).mid > 10
