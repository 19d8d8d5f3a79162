from collections import Counter

from strategies.data.sampling import content_order


def digests(n: int, start: int = 0) -> list[str]:
    return [f"digest {i}" for i in range(start, start + n)]


def drawn(images: list[str], k: int, seed: int = 0) -> list[str]:
    return [images[i] for i in content_order(images, seed)[:k]]


def test_an_order_holds_everything_once_and_depends_on_the_seed() -> None:
    order = content_order(digests(500), 0)
    assert sorted(order) == list(range(500))
    assert order != content_order(digests(500), 1)
    assert order == content_order(digests(500), 0)


def test_added_images_displace_only_their_share_of_a_draw() -> None:
    before, after = digests(1000), digests(100, start=1000) + digests(1000)
    kept = set(drawn(before, 250)) & set(drawn(after, 250))
    assert 200 <= len(kept) < 250


def test_every_copy_has_a_place_of_its_own() -> None:
    often = Counter(drawn(digests(40) * 50, 200))
    assert len(often) == 40
    assert max(often.values()) < 20
