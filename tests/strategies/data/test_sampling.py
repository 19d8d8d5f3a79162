from collections import Counter

from strategies.data.sampling import content_order


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
