import numpy as np
import pytest

from advisor.measure.transfer_gain import transfer_gain, verdict
from strategies.core.metrics import Interval

CLASSES = ("ant", "bee", "wasp")


def test_a_classifier_better_than_its_control_has_a_positive_transfer_gain() -> None:
    labels = np.repeat([0, 1, 2], 50)
    hits, control = np.ones(150, dtype=bool), labels != 0

    found = transfer_gain(hits, control, labels, CLASSES, "from_scratch")

    assert found.verdict == "positive"
    assert found.gain.mid == pytest.approx(1 / 3)
    assert [c.gain.mid > 0 for c in found.per_class] == [True, False, False]


def test_a_classifier_worse_than_its_control_shows_negative_transfer() -> None:
    labels = np.repeat([0, 1], 50)
    hits, control = labels == 0, np.ones(100, dtype=bool)

    found = transfer_gain(hits, control, labels, CLASSES, "from_scratch")

    assert found.verdict == "negative"
    assert found.gain.high < 0
    assert [(c.name, c.gain.mid < 0) for c in found.per_class] == [("ant", False), ("bee", True)]


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(0.01, 0.2, 0.3), "positive"),
        (Interval(-0.3, -0.2, -0.01), "negative"),
        (Interval(-0.04, 0.0, 0.03), "none"),
        (Interval(-0.2, 0.0, 0.2), "unclear"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(interval: Interval, word: str) -> None:
    assert verdict(interval, control_learnt=True) == word


def test_with_a_control_that_learnt_nothing_only_negative_transfer_is_determined() -> None:
    labels = np.repeat([0, 1, 2], 50)
    hits, chance = np.ones(150, dtype=bool), labels == 0

    found = transfer_gain(hits, chance, labels, CLASSES, "from_scratch")

    assert found.verdict == "undetermined"
    assert found.per_class == ()
    assert transfer_gain(hits, labels > 0, labels, CLASSES, "x").verdict == "positive"
    assert verdict(Interval(-0.3, -0.2, -0.1), control_learnt=False) == "negative"


def test_swapping_classifier_and_control_changes_the_sign_of_the_gain() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    hits, control = rng.random(200) < 0.8, rng.random(200) < 0.6
    forward = transfer_gain(hits, control, labels, CLASSES, "x").gain
    backward = transfer_gain(control, hits, labels, CLASSES, "x").gain
    assert forward.mid == pytest.approx(-backward.mid)
    assert forward.low == pytest.approx(-backward.high)
