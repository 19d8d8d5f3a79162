import numpy as np
import pytest

from advisor.similarity.source_head import head_evidence, nearest_source_classes, predict
from strategies.models.features import SourceHead

NAMES = ("ladybug", "goldfish", "sports car", "daisy")
IDENTITY = SourceHead(np.eye(4, dtype=np.float32), np.zeros(4, np.float32), NAMES)


def logits(named: list[int], strength: float) -> np.ndarray:
    return (strength * np.eye(4)[named]).astype(np.float32)


def test_entropy_is_zero_if_certain_and_maximal_if_uniform() -> None:
    certain, uniform = (
        predict(IDENTITY, logits([0, 1], 50.0)),
        predict(IDENTITY, logits([0, 1], 0)),
    )
    assert certain.entropy == pytest.approx(np.zeros(2), abs=1e-9)
    assert uniform.entropy == pytest.approx(np.full(2, np.log(4)))


def test_probabilities_are_the_softmax_of_the_head() -> None:
    rng = np.random.default_rng(0)
    head = SourceHead(
        rng.normal(size=(4, 7)).astype(np.float32), rng.normal(size=4).astype(np.float32), NAMES
    )
    x = rng.normal(size=(1500, 7)).astype(np.float32)
    expected = np.exp(x @ head.weight.T + head.bias)
    expected /= expected.sum(axis=1, keepdims=True)
    assert predict(head, x).probabilities == pytest.approx(expected, rel=1e-3)


def test_the_nearest_source_class_is_predicted_for_most_images_of_a_class() -> None:
    named, labels = np.array([0, 0, 0, 1, 3, 3]), np.array([0, 0, 0, 0, 1, 1])
    found = nearest_source_classes(named, labels, ["ladybird", "meadow"], NAMES)
    assert {f.name: f.source_class for f in found} == {"ladybird": "ladybug", "meadow": "daisy"}
    assert {f.name: f.share.mid for f in found} == {"ladybird": 0.75, "meadow": 1.0}


def test_the_source_class_with_the_largest_lower_bound_is_first() -> None:
    named = np.array([0] * 20 + [3] * 2 + [1, 2])
    labels = np.array([0] * 20 + [1] * 2 + [2] * 2)
    found = nearest_source_classes(named, labels, ["many", "two", "torn"], NAMES)
    assert [f.name for f in found] == ["many", "two", "torn"]


def test_related_labels_score_higher_than_unrelated_ones() -> None:
    named = [0] * 30 + [2] * 30
    related = np.repeat([0, 1], 30)
    unrelated = np.tile([0, 1], 30)
    found = [
        head_evidence(IDENTITY, logits(named, 5.0), y, ["a", "b"]) for y in (related, unrelated)
    ]
    assert found[0].leep.low > found[1].leep.high


def test_a_large_class_does_not_dominate_a_small_one() -> None:
    x = np.concatenate([logits([0] * 300, 50.0), logits([0] * 30, 0.0)])
    found = head_evidence(IDENTITY, x, np.repeat([0, 1], [300, 30]), ["certain", "uniform"], 0.8)
    assert found.confident_share.mid == pytest.approx(0.5, abs=0.02)
    assert found.entropy.mid == pytest.approx(np.log(4) / 2, abs=0.04)
    assert found.source_confident_share == 0.8
