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
    assert [c.significant for c in found.per_class] == [True, False, False]


def test_a_classifier_worse_than_its_control_shows_negative_transfer() -> None:
    labels = np.repeat([0, 1], 50)
    hits, control = labels == 0, np.ones(100, dtype=bool)

    found = transfer_gain(hits, control, labels, CLASSES, "from_scratch")

    assert found.verdict == "negative"
    assert found.gain.high < 0
    assert [(c.name, c.significant) for c in found.per_class] == [("ant", False), ("bee", True)]


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


def test_equal_classifiers_rarely_differ_significantly_in_any_class() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(20), 30)
    names = [str(c) for c in range(20)]
    n_false = 0
    for _ in range(200):
        hits, control = rng.random(600) < 0.7, rng.random(600) < 0.7
        n_false += any(
            c.significant for c in transfer_gain(hits, control, labels, names, "x").per_class
        )
    assert n_false / 200 <= 0.05


def test_the_false_discovery_rate_over_classes_is_at_most_five_percent() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(20), 40)
    gains = labels < 5
    names = [str(c) for c in range(20)]
    false_shares, found_shares = [], []
    for _ in range(200):
        hits = rng.random(800) < np.where(gains, 0.95, 0.6)
        control = rng.random(800) < 0.6
        sure = np.array(
            [c.significant for c in transfer_gain(hits, control, labels, names, "x").per_class]
        )
        false_shares.append(sure[5:].sum() / max(sure.sum(), 1))
        found_shares.append(sure[:5].mean())
    assert np.mean(false_shares) <= 0.05
    assert np.mean(found_shares) > 0.5


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        transfer_gain(np.ones(3, bool), np.ones(4, bool), np.zeros(3, int), CLASSES, "x")
