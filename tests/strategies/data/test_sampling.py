from collections import Counter

import numpy as np

from strategies.data.sampling import balanced_rows, content_order


def digests(n: int, start: int = 0) -> list[str]:
    return [f"digest {i}" for i in range(start, start + n)]


def sample(images: list[str], k: int, seed: int = 0) -> list[str]:
    return [images[i] for i in content_order(images, seed)[:k]]


def test_the_content_order_is_a_permutation_determined_by_the_seed() -> None:
    order = content_order(digests(500), 0)
    assert sorted(order) == list(range(500))
    assert order != content_order(digests(500), 1)
    assert order == content_order(digests(500), 0)


def test_added_images_replace_only_their_share_of_a_sample() -> None:
    before, after = digests(1000), digests(100, start=1000) + digests(1000)
    common = set(sample(before, 250)) & set(sample(after, 250))
    assert 200 <= len(common) < 250


def test_copies_are_spread_over_the_content_order() -> None:
    counts = Counter(sample(digests(40) * 50, 200))
    assert len(counts) == 40
    assert max(counts.values()) < 20


def test_balanced_rows_are_spread_over_the_classes_as_evenly_as_their_sizes_allow() -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 100, 20, 1])
    rows = balanced_rows(labels, 61, np.random.default_rng(0).permutation(len(labels)))
    assert np.bincount(labels[rows]).tolist() == [20, 20, 20, 1]
    assert (np.diff(rows) > 0).all()


def test_balanced_rows_are_the_first_of_each_class_in_the_order() -> None:
    labels, order = np.array([0, 0, 1, 1, 1]), [4, 3, 2, 1, 0]
    assert balanced_rows(labels, 2, order).tolist() == [1, 4]
    assert balanced_rows(labels, 9, order).tolist() == [0, 1, 2, 3, 4]


def test_with_more_classes_than_rows_no_class_is_drawn_twice() -> None:
    labels = np.repeat(np.arange(50), 3)
    rows = balanced_rows(labels, 10, np.random.default_rng(0).permutation(len(labels)))
    assert len(rows) == len(set(labels[rows])) == 10
