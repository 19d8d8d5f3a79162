"""Labels without a signal: no strategy is expected above chance, and real cases are spared."""

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest

from advisor.decide.chance import lacks_signal
from advisor.decide.negative_transfer import transfer_risks
from advisor.decide.priors import load_priors
from advisor.decide.recommend import recommend
from advisor.types.profile import Profile
from strategies.core.metrics import proportion
from tests.advisor.profiles import inputs_of, probe, profile_of
from tests.conftest import BENCHMARKS

N = 200


def at(share: float, *, n: int = N, n_classes: int = 5, **changes: Any) -> Profile:
    """Return a profile whose probes all reach the same share of `n` images."""
    probes = (
        probe(3, "softmax", share, n=n),
        probe(0, "softmax", share, n=n),
        *(probe(d, "squared_hinge", share, n=n) for d in (1, 2, 3, 0)),
    )
    profile = profile_of(n_classes=n_classes, n_per_class=n // n_classes)
    accuracy = proportion(share, n)
    measured = {"best_svm": probes[2], "knn": accuracy, "pixel_probe": accuracy}
    return replace(profile, probes=probes, **(measured | changes))


def test_measurements_at_chance_on_enough_images_lack_signal() -> None:
    assert lacks_signal(at(0.2))
    assert lacks_signal(at(0.16))
    assert not lacks_signal(at(0.2, n=10))  # too few to tell
    assert not lacks_signal(at(0.35))


@pytest.mark.parametrize(
    "changes",
    [
        {"knn": proportion(0.33, N)},
        {"pixel_probe": proportion(0.33, N)},
        {"best_svm": probe(1, "squared_hinge", 0.33, n=N)},
        {"random_probes": (probe(1, "squared_hinge", 0.33, n=N),)},
    ],
)
def test_one_measurement_clearly_above_chance_is_a_signal(changes: dict[str, Any]) -> None:
    assert not lacks_signal(at(0.2, **changes))


def test_a_lucky_measurement_among_several_is_no_signal() -> None:
    lucky = 0.2 + 1.7 * math.sqrt(0.2 * 0.8 / N)  # above the 90% interval of chance
    assert lacks_signal(at(0.2, knn=proportion(lucky, N)))


def test_accuracy_at_the_share_of_a_dominant_class_does_not_deny_a_signal() -> None:
    skewed = at(0.9, n_classes=2, n=2000, majority_share=0.9)
    assert not lacks_signal(skewed)


def test_without_signal_all_strategies_are_expected_at_chance_and_the_cheapest_leads() -> None:
    profile = at(0.2)
    inputs, priors = inputs_of(profile), load_priors()
    found = recommend(inputs, priors).recommendations
    for r in found:
        assert r.accuracy.mid == pytest.approx(profile.majority_share)
        assert r.accuracy.low < profile.majority_share < r.accuracy.high
    assert found[0].strategy == "linear_probe"
    assert "no measurement is above chance (20.0%)" in found[0].reasons[0]
    assert transfer_risks(inputs, priors) == ()
    forced = recommend(inputs, priors, "full_fine_tune").recommendations[0]
    assert forced.strategy == "full_fine_tune"
    assert any("--strategy" in reason for reason in forced.reasons)


def test_no_benchmark_case_lacks_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = importlib.import_module("rows").read_inputs()
    assert len(known) >= 120
    for case, inputs in known.items():
        assert not lacks_signal(inputs.profile), case
