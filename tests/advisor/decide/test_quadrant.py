"""Quadrants of size and domain, and their rules of thumb."""

import pytest

from advisor.decide.quadrant import ENOUGH_PER_CLASS, RULES, find_quadrant, size_position
from strategies.core.metrics import Interval

WIDTH = 1280


NEAR, FAR = Interval(0.88, 0.9, 0.92), Interval(0.08, 0.1, 0.12)


@pytest.mark.parametrize(
    ("per_class", "size"), [(20, "small"), (2000, "large")], ids=["few", "many"]
)
@pytest.mark.parametrize(("where", "domain"), [(NEAR, "similar"), (FAR, "different")])
def test_a_clear_quadrant_has_only_its_own_rule(
    per_class: int, size: str, where: Interval, domain: str
) -> None:
    found = find_quadrant([per_class] * 10, WIDTH, where)
    assert (found.size, found.domain) == (size, domain)
    assert not found.borderline
    assert found.candidates == (found.rule,) == (RULES[size, domain],)


def test_a_similarity_interval_across_the_threshold_makes_both_rules_candidates() -> None:
    found = find_quadrant([20] * 5, WIDTH, Interval(0.3, 0.55, 0.7))
    assert found.borderline
    assert found.candidates == ("linear_probe", "layer_svm")


def test_a_narrow_interval_next_to_the_threshold_is_borderline() -> None:
    assert find_quadrant([20] * 5, WIDTH, Interval(0.51, 0.52, 0.53)).borderline


def test_size_measures_that_disagree_are_borderline() -> None:
    few_wide_classes = find_quadrant([600, 600], WIDTH, NEAR)
    many_thin_classes = find_quadrant([30] * 500, WIDTH, NEAR)
    for found in (few_wide_classes, many_thin_classes):
        assert found.borderline
        assert set(found.candidates) == {"linear_probe", "full_fine_tune"}


def test_the_position_grows_with_the_number_of_images() -> None:
    positions = [size_position([n, 2 * n, 3 * n], WIDTH).mid for n in (1, 5, 50, 500)]
    assert positions == sorted(positions)


def test_a_wider_network_lowers_the_position_of_the_same_images() -> None:
    assert size_position([300] * 4, 2048).mid < size_position([300] * 4, 512).mid


def test_the_position_is_zero_where_both_measures_are_at_their_threshold() -> None:
    n_classes = 2 * WIDTH // ENOUGH_PER_CLASS
    at = size_position([ENOUGH_PER_CLASS] * n_classes, WIDTH)
    assert at.mid == pytest.approx(0, abs=0.02)


def test_a_class_with_few_images_lowers_the_position() -> None:
    assert size_position([1000, 1000, 5], WIDTH).low < size_position([700, 700, 605], WIDTH).low


@pytest.mark.parametrize("sizes", [[], [10, 0]])
def test_classes_without_images_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        size_position(sizes, WIDTH)


def test_the_quadrant_stores_both_positions() -> None:
    found = find_quadrant([20] * 5, WIDTH, NEAR)
    assert found.similarity == NEAR
    assert found.size_decades == size_position([20] * 5, WIDTH)
