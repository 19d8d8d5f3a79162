import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from strategies.data.decoding import decode
from strategies.data.image import THUMB_PX, ImageStats, LabelledImage
from strategies.data.inspection import measure_image
from strategies.data.near_duplicates import (
    LARGEST_ANYWAY,
    Match,
    connected,
    duplicate_groups,
    find_leaks,
    find_matches,
    grey_thumbnails,
    pairs_of,
    similar_thumbnails,
)


def scene(seed: int, px: int = 160) -> Image.Image:
    """Return noise whose power falls with frequency, as in a photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(px), np.fft.fftfreq(px)))
    channels = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(px, px))) / (frequency + 1 / px)
        values = np.real(np.fft.ifft2(spectrum))
        channels.append((values - values.min()) / np.ptp(values))
    return Image.fromarray((255 * np.stack(channels, axis=2)).astype(np.uint8))


def labelled(
    image: Image.Image, name: str, label: int = 0, digest: str | None = None
) -> LabelledImage:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    decoded = decode(stream.getvalue())
    stats = measure_image(decoded, stream.tell())
    return LabelledImage(Path(name), label, digest or name, *image.size, stats=stats)


def jpeg(image: Image.Image, quality: int = 60) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


@pytest.fixture(scope="module")
def scenes() -> list[LabelledImage]:
    return [labelled(scene(i), f"{i}", i % 4) for i in range(120)]


def duplicate_names(images: list[LabelledImage]) -> set[tuple[str, str]]:
    found = pairs_of(images, find_matches(images))
    return {(p.first.path.name, p.second.path.name) for p in found}


def test_unrelated_images_are_not_reported_as_duplicates(scenes: list[LabelledImage]) -> None:
    assert duplicate_names(scenes) == set()


@pytest.mark.parametrize("what", ["encoded again", "resized", "rotated", "brighter"])
def test_a_changed_copy_is_a_near_duplicate(scenes: list[LabelledImage], what: str) -> None:
    original = scene(3)
    copies = {
        "encoded again": jpeg(original),
        "resized": original.resize((144, 144), Image.Resampling.BICUBIC),
        "rotated": original.rotate(1, Image.Resampling.BICUBIC),
        "brighter": original.point(lambda v: min(255, round(1.1 * v))),
    }
    assert duplicate_names([*scenes, labelled(copies[what], "copy")]) == {("3", "copy")}


def test_a_copy_of_another_aspect_ratio_is_not_a_near_duplicate(
    scenes: list[LabelledImage],
) -> None:
    assert duplicate_names([*scenes, labelled(scene(3).resize((160, 120)), "stretched")]) == set()


def test_exact_copies_are_matched_with_the_first_copy(scenes: list[LabelledImage]) -> None:
    copies = [replace(scenes[5], path=Path(name)) for name in ("a", "b")]
    matches = find_matches([*scenes, *copies])
    assert matches == (Match(5, 120, True, 1.0), Match(5, 121, True, 1.0))


def cut(image: Image.Image, share: float, *, top_left: bool) -> Image.Image:
    """Return a corner of an image with this share of both sides."""
    px = round(share * image.width)
    start = 0 if top_left else image.width - px
    return image.crop((start, start, start + px, start + px))


ALTERED = {
    "crop of 95%": lambda image: cut(image, 0.95, top_left=True),
    "crop of 90%": lambda image: cut(image, 0.90, top_left=False),
    "strip cut off": lambda image: image.crop((0, 0, image.width, round(0.9 * image.height))),
    "turned by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "crop of 95%, mirrored": lambda image: ImageOps.mirror(cut(image, 0.95, top_left=False)),
}


@pytest.mark.parametrize("what", ALTERED)
@pytest.mark.parametrize("max_exhaustive", [0, 1000])
def test_a_crop_or_mirror_image_is_a_near_duplicate(
    scenes: list[LabelledImage], what: str, max_exhaustive: int
) -> None:
    copy = labelled(jpeg(ALTERED[what](scene(3)), 90), "copy")
    for images in ([*scenes, copy], [copy, *scenes[::-1]]):
        (match,) = find_matches(images, max_exhaustive=max_exhaustive)
        assert {images[match.first].path.name, images[match.second].path.name} == {"3", "copy"}
        assert match.mirrored == ("mirrored" in what)
        assert not match.exact
        assert pairs_of(images, [match])[0].mirrored == match.mirrored


def test_crops_and_mirror_images_are_not_searched_on_request(scenes: list[LabelledImage]) -> None:
    mirrored = labelled(ImageOps.mirror(scene(3)), "copy")
    assert find_matches([*scenes, mirrored], crops=False) == ()


def test_half_of_an_image_is_not_a_near_duplicate(scenes: list[LabelledImage]) -> None:
    half = labelled(cut(scene(3), 0.5, top_left=True), "copy")
    assert duplicate_names([*scenes, half]) == set()


def test_another_photograph_of_the_same_scene_is_not_a_near_duplicate(
    scenes: list[LabelledImage],
) -> None:
    def blurred(image: Image.Image) -> np.ndarray:
        small = image.resize((16, 16), Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC), dtype=float)

    detail = np.asarray(scene(500), dtype=float) - blurred(scene(500))
    other = Image.fromarray((blurred(scene(3)) + detail).clip(0, 255).astype(np.uint8))
    assert duplicate_names([*scenes, labelled(other, "same scene")]) == set()
    assert duplicate_names([*scenes, labelled(ImageOps.mirror(other), "mirrored")]) == set()


@pytest.mark.parametrize(("px", "is_found"), [(64, True), (63, False)])
def test_crops_and_mirror_images_are_found_from_64_pixels_on(
    scenes: list[LabelledImage], px: int, is_found: bool
) -> None:
    for what in ("crop of 90%", "mirrored"):
        copy = labelled(ALTERED[what](scene(3)), "copy")
        images = [replace(p, width_px=px, height_px=px) for p in (*scenes, copy)]
        assert duplicate_names(images) == ({("3", "copy")} if is_found else set())


@pytest.mark.parametrize(("contrast", "is_found"), [(190, True), (150, True), (90, False)])
def test_images_of_one_edge_must_agree_in_contrast(
    scenes: list[LabelledImage], contrast: int, is_found: bool
) -> None:
    def card(contrast: int, edge: float, seed: int) -> Image.Image:
        y, x = np.mgrid[:160, :160] / 160
        levels = 230 - contrast * (x > edge + 0.35 * y)
        grain = np.random.default_rng(seed).normal(scale=contrast / 10, size=levels.shape)
        return Image.fromarray((levels + grain).clip(0, 255).astype(np.uint8)).convert("RGB")

    cards = [labelled(card(190, 0.20, 1), "first"), labelled(card(contrast, 0.24, 2), "second")]
    assert duplicate_names([*scenes, *cards]) == ({("first", "second")} if is_found else set())


def test_images_that_all_look_alike_are_not_crops_of_each_other() -> None:
    def ring(seed: int) -> Image.Image:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:96, :96] / 96 - 0.5 + rng.uniform(-0.05, 0.05, (2, 1, 1))
        size = rng.uniform(0.25, 0.3)
        drawn = 255 * (np.abs(np.hypot(x, rng.uniform(0.9, 1.1) * y) - size) < 0.02)
        return Image.fromarray(drawn.astype(np.uint8)).convert("RGB")

    images = [labelled(ring(i), f"{i}") for i in range(60)]
    upright = find_matches(images, crops=False)
    assert find_matches(images) == upright
    assert find_matches(images, max_exhaustive=0, crops=True) == find_matches(
        images, max_exhaustive=0, crops=False
    )


def test_a_mirrored_copy_in_train_is_a_leak(scenes: list[LabelledImage]) -> None:
    train = [*scenes[:60], labelled(ImageOps.mirror(scene(61)), "mirrored")]
    test = scenes[60:80]
    everything = [*train, *test]
    pairs = pairs_of(everything, find_matches(everything))
    (leak,) = find_leaks({"train": tuple(train), "test": tuple(test)}, pairs)
    (pair,) = leak.pairs
    assert (leak.n_exact, leak.n_near) == (0, 1)
    assert [path.name for path in pair] == ["61", "mirrored"]


def glyph(seed: int, px: int) -> Image.Image:
    """Return a smooth blob like a small handwritten digit: alike in all images."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px] / px - 0.5 + rng.uniform(-0.02, 0.02)
    ring = np.exp(-((np.hypot(x, 1.2 * y) - 0.28) ** 2) / 0.01)
    noisy = 230 * ring + rng.normal(0, 12, (px, px))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("px", [8, 12])
def test_tiny_images_have_only_exact_copies(px: int) -> None:
    glyphs = [labelled(glyph(i, px), f"{i}") for i in range(30)]
    assert find_matches([*glyphs, labelled(jpeg(glyph(3, px), 95), "encoded")]) == ()
    copy = replace(glyphs[5], path=Path("copy"))
    assert find_matches([*glyphs, copy]) == (Match(5, 30, True, 1.0),)


def test_of_enlarged_images_only_encoded_copies_are_near_duplicates() -> None:
    glyphs = [labelled(scene(i, 28), f"{i}") for i in range(120)]
    encoded = labelled(jpeg(scene(3, 28), 95), "copy")
    assert duplicate_names([*glyphs, encoded]) == {("3", "copy")}
    blurred = scene(3, 28).resize((20, 20), Image.Resampling.BICUBIC).resize((28, 28))
    assert duplicate_names([*glyphs, labelled(blurred, "copy")]) == set()


@pytest.mark.parametrize(("px", "copy_px", "is_found"), [(32, 29, True), (28, 29, False)])
def test_a_copy_that_lost_detail_is_found_if_one_of_both_was_not_enlarged(
    scenes: list[LabelledImage], px: int, copy_px: int, is_found: bool
) -> None:
    rotated = labelled(scene(3).rotate(1, Image.Resampling.BICUBIC), "copy")
    images = [replace(p, width_px=px, height_px=px) for p in scenes]
    images.append(replace(rotated, width_px=copy_px, height_px=copy_px))
    assert duplicate_names(images) == ({("3", "copy")} if is_found else set())


def test_blank_images_are_not_near_duplicates_of_each_other() -> None:
    blanks = [labelled(Image.new("RGB", (64, 64), (i, i, i)), f"{i}") for i in range(5)]
    assert find_matches(blanks) == ()
    assert find_matches(blanks[:1]) == ()
    assert find_matches([]) == ()


def thumbnails_of_scenes(n: int, seed: int = 0) -> np.ndarray:
    """Return thumbnails whose power falls with frequency, floats (n, px, px) from 0 to 255."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(THUMB_PX), np.fft.fftfreq(THUMB_PX)))
    spectrum = np.fft.fft2(rng.normal(size=(n, THUMB_PX, THUMB_PX))) / (frequency + 1 / THUMB_PX)
    values = np.real(np.fft.ifft2(spectrum))
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    return np.asarray(255 * (values - low) / (high - low))


def images_of(thumbnails: np.ndarray) -> list[LabelledImage]:
    pixels = thumbnails.clip(0, 255).round().astype(np.uint8)
    stats = [ImageStats("PNG", 1, True, int(np.ptp(p)), p.tobytes()) for p in pixels]
    return [
        LabelledImage(Path(str(i)), i % 4, str(i), 200, 200, stats=s) for i, s in enumerate(stats)
    ]


def pair(match: Match) -> tuple[int, int]:
    return match.first, match.second


def test_many_images_have_the_duplicates_that_all_their_pairs_show() -> None:
    thumbnails = thumbnails_of_scenes(3000)
    rng = np.random.default_rng(1)
    noisy = thumbnails[:300] + rng.normal(0, 2, (300, THUMB_PX, THUMB_PX))
    weak = thumbnails[300:600] + rng.normal(0, 20, (300, THUMB_PX, THUMB_PX))
    images = images_of(np.concatenate([thumbnails, noisy, weak, np.zeros((50, 32, 32))]))
    every = {pair(m): m.similarity for m in find_matches(images, max_exhaustive=len(images))}
    found = {pair(m) for m in find_matches(images, max_exhaustive=0)}
    assert found <= every.keys()
    assert found >= {p for p, similarity in every.items() if similarity > 0.9}
    assert sum(similarity <= 0.9 for similarity in every.values()) > 200
    assert len(found) >= 0.99 * len(every)


def test_every_copy_of_a_much_copied_image_is_found() -> None:
    thumbnails = thumbnails_of_scenes(600)
    noise = np.random.default_rng(1).normal(0, 2, (40, THUMB_PX, THUMB_PX))
    images = images_of(np.concatenate([thumbnails, thumbnails[7] + noise]))
    for max_exhaustive in (0, len(images)):
        matches = find_matches(images, max_exhaustive=max_exhaustive)
        assert len(matches) == 41 * 40 / 2


def test_the_comparisons_of_four_times_the_images_are_eight_times_as_many() -> None:
    def n_compared(n: int) -> int:
        grey = grey_thumbnails(images_of(thumbnails_of_scenes(n)))
        return sum(len(rows) * len(columns) for rows, columns in similar_thumbnails(grey, 0))

    assert n_compared(4000) == pytest.approx(8 * n_compared(1000), rel=0.25)


def test_blank_images_alone_are_compared_with_none() -> None:
    blanks = [labelled(Image.new("RGB", (64, 64), (i, i, i)), f"{i}") for i in range(5)]
    assert find_matches(blanks, max_exhaustive=0) == ()


def test_groups_follow_links_and_long_uncertain_chains_are_split() -> None:
    assert connected(4, [(0, 2)]).tolist() == [0, 1, 0, 2]
    certain = [Match(0, 1, False, 0.95)]
    uncertain = [Match(i, i + 1, False, 0.7) for i in range(1, LARGEST_ANYWAY + 5)]
    n = LARGEST_ANYWAY + 10
    assert len(set(duplicate_groups(n, [*certain, *uncertain[:5]]).tolist())) == n - 6
    assert len(set(duplicate_groups(n, [*certain, *uncertain]).tolist())) == n - 1


def test_leaks_count_exact_and_near_copies_once(scenes: list[LabelledImage]) -> None:
    train, test = scenes[:60], scenes[60:80]
    train += [replace(test[0], path=Path("copy")), labelled(jpeg(scene(61)), "again")]
    splits = {"train": tuple(train), "test": tuple(test)}
    everything = [*train, *test]
    (leak,) = find_leaks(splits, pairs_of(everything, find_matches(everything)))
    assert (leak.split, leak.source, leak.n, leak.n_exact, leak.n_near) == (
        "test",
        "train",
        20,
        1,
        1,
    )
    assert leak.pairs == ((Path("60"), Path("copy")), (Path("61"), Path("again")))
    assert find_leaks({"train": tuple(train)}, ()) == ()
