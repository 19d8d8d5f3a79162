"""Measure how well planted leaks, series, wrong labels and bad images are detected.

leaks    10% of the test images are copied into train: unchanged, re-encoded (JPEG, quality 75),
         resized by 0.9, or rotated by one degree. Printed: the share found, and the share of
         reported pairs that were not planted.
altered  60 copies of each kind are added: re-encoded (JPEG, quality 75), turned by two degrees,
         cropped to 95% and to 85% of both sides at a random place, mirrored (all but the first
         saved as JPEG, quality 90). Printed: the share found, without and with the search for
         crops. Its thresholds were chosen on hymenoptera, imagenet_samples, weather4, fruit28,
         art_painting7, bird_groups and bean_leaf (planted copies) and on the other shared datasets
         (false pairs), none of which is used here; FEW_FREQUENCIES also on false pairs of trash6
         and dtd10.
pairs    The number of near-duplicates in the datasets as they are, without and with that search,
         and the new pairs by their paths, to be looked at.
series   gtsrb's train and test merged into one folder: the share of pairs of frames of one track
         that the automatic split puts into the same split, with original and with meaningless
         file names.
labels   5% of the labels changed: the share of them in the top tenth of the suspect labels.
quality  the images of every dataset that are called blurred (TL017), dark (TL018) or over-exposed
         (TL019); and the share found of 50 that were blurred (Gaussian, its standard deviation 2%
         of the root of the area), darkened (to 20%) or over-exposed (3 times as bright).

Run:      python benchmarks/data_quality.py DATA --part PART [--cache-dir DIR]
Cost:     leaks 4 minutes, altered 3, pairs 5, series 1, labels 4, quality 4 minutes on 2 cores
          (features cached).
Expected: docs/benchmarks/data.md.
"""

import argparse
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from strategies.core.cache import ArrayCache
from strategies.data.dataset import Dataset, LabelledImage, Split, labels_of, load_dataset
from strategies.data.decoding import decode, read_bytes
from strategies.data.inspection import measure_image, read_images
from strategies.data.near_duplicates import find_matches

SETS = {
    "leaks": ("flowers5", "cats_dogs", "trash6", "neu_surface", "pneumonia_cxr", "hymenoptera"),
    "altered": ("flowers5", "cats_dogs", "trash6"),
    "pairs": (),
    "series": ("gtsrb",),
    "labels": ("flowers5", "cats_dogs"),
    "quality": (),  # all
}
SEEDS = (0, 1, 2)
MAX_PER_SET = 1000
N_CHANGED = 50
N_ALTERED = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Run one part and print one line per dataset and seed (leaks: per kind of copy)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shared", type=Path, help="folder of the datasets")
    parser.add_argument("--part", choices=tuple(SETS), required=True)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument(
        "--sets", nargs="+", help="datasets; default: those of docs/benchmarks/data.md; pairs: all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args(argv)
    every = sorted(path.name for path in args.shared.iterdir() if path.is_dir())
    for name in args.sets or SETS[args.part] or every:
        if args.part == "quality":
            bad_images(args.shared / name, args.seeds)
        elif args.part == "leaks":
            leaks(args.shared / name, args.seeds)
        elif args.part == "altered":
            altered(args.shared / name, args.seeds)
        elif args.part == "pairs":
            new_pairs(args.shared / name, args.cache_dir)
        elif args.part == "series":
            series(args.shared / name, args.seeds)
        else:
            wrong_labels(args.shared / name, args.cache_dir, args.seeds)


def unchanged(path: Path, to: Path) -> None:
    """Copy the file unchanged."""
    to.with_suffix(path.suffix).write_bytes(path.read_bytes())


def reencoded(path: Path, to: Path) -> None:
    """Save as a JPEG of quality 75."""
    Image.open(path).convert("RGB").save(to.with_suffix(".jpg"), quality=75)


def resized(path: Path, to: Path) -> None:
    """Resize to 0.9 of each side."""
    image = Image.open(path).convert("RGB")
    size = (round(0.9 * image.width), round(0.9 * image.height))
    image.resize(size, Image.Resampling.BICUBIC).save(to.with_suffix(".png"))


def rotated(path: Path, to: Path) -> None:
    """Rotate by one degree; corners become black."""
    image = Image.open(path).convert("RGB")
    image.rotate(1, Image.Resampling.BICUBIC).save(to.with_suffix(".png"))


COPIES: tuple[Callable[[Path, Path], None], ...] = (unchanged, reencoded, resized, rotated)


def leaks(source: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Copy a tenth of the test images into train, and count the copies that are detected."""
    files = [p for p in sorted(source.rglob("*.*")) if p.is_file() and "test" not in p.parts]
    for copy in COPIES:
        found, false, share = [], [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            chosen = [files[i] for i in rng.permutation(len(files))[:MAX_PER_SET]]
            n_test = len(chosen) // 5
            with tempfile.TemporaryDirectory() as scratch:
                root = Path(scratch)
                for i, path in enumerate(chosen):
                    split = "test" if i < n_test else "train"
                    target = root / split / path.parent.name / f"{i}{path.suffix}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(path.resolve())
                planted = set()
                for i in range(n_test // 10):
                    copy(chosen[i], root / "train" / chosen[i].parent.name / f"planted-{i}")
                    planted.add(str(i))
                dataset = load_dataset(root)
            hits, wrong = set(), 0
            for pair in dataset.pairs:
                stems = {pair.first.path.stem, pair.second.path.stem}
                original = next(iter(stems & planted), None)
                if original is not None and f"planted-{original}" in stems:
                    hits.add(original)
                else:
                    wrong += 1
            n = len(chosen) + len(planted)
            found.append(len(hits) / len(planted))
            false.append(wrong / (n * (n - 1) / 2))
            leak = next((k for k in dataset.leaks if k.split == "test"), None)
            share.append(0.0 if leak is None else (leak.n_exact + leak.n_near) / leak.n)
        print(
            f"{source.name:14} {copy.__name__:10} found {spread(found)}  false positives, of all "
            f"pairs {np.mean(false):.1e} (max {max(false):.1e})  leak reported {spread(share)}",
            flush=True,
        )


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by two degrees; corners become black."""
    return image.rotate(2, Image.Resampling.BICUBIC)


def cropped(share: float) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    """Return a function that cuts out this share of both sides, at a random place."""

    def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = round(share * image.width), round(share * image.height)
        x, y = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        return image.crop((int(x), int(y), int(x) + width, int(y) + height))

    return crop


ALTERED: dict[str, tuple[Callable[[Image.Image, np.random.Generator], Image.Image], int]] = {
    "re-encoded": (lambda image, rng: image, 75),
    "turned by 2 degrees": (turned, 90),
    "crop of 95%": (cropped(0.95), 90),
    "crop of 85%": (cropped(0.85), 90),
    "mirrored": (lambda image, rng: ImageOps.mirror(image), 90),
}
"""How a copy is altered, and the JPEG quality it is saved with."""


def altered(source: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Add altered copies to all images of a dataset, and count those that are found."""
    images = labelled_images(source)
    for kind, (alter, quality) in ALTERED.items():
        found: dict[bool, list[float]] = {False: [], True: []}
        for seed in seeds:
            rng = np.random.default_rng(seed)
            chosen = rng.permutation(len(images))[:N_ALTERED].tolist()
            with tempfile.TemporaryDirectory() as scratch:
                files = []
                for row in chosen:
                    image = Image.open(images[row].path).convert("RGB")
                    files.append((Path(scratch) / f"{row}.jpg", images[row].label))
                    alter(image, rng).save(files[-1][0], quality=quality)
                copies, _ = read_images(files, 1)
            planted = {(row, len(images) + i) for i, row in enumerate(chosen)}
            for crops, shares in found.items():
                matches = find_matches((*images, *copies), crops=crops)
                hits = planted & {(m.first, m.second) for m in matches}
                shares.append(len(hits) / len(planted))
        print(
            f"{source.name:14} {kind:20} found {spread(found[True])}  "
            f"without the search for crops {spread(found[False])}",
            flush=True,
        )


def new_pairs(source: Path, cache_dir: Path | None) -> None:
    """Print how many near-duplicates a dataset has, and those that only the new search finds."""
    images = labelled_images(source, cache_dir)
    before = find_matches(images, crops=False)
    after = [match for match in find_matches(images) if match not in set(before)]
    n_near = sum(not match.exact for match in before)
    print(
        f"{source.name:16} {len(images):5} images {n_near:4} pairs, {len(after):3} new", flush=True
    )
    for match in after:
        names = [images[row].path.relative_to(source) for row in (match.first, match.second)]
        how = "mirrored" if match.mirrored else ""
        print(f"    {names[0]} = {names[1]} {match.similarity:.2f} {how}", flush=True)


def labelled_images(source: Path, cache_dir: Path | None = None) -> tuple[LabelledImage, ...]:
    """Read all images below a folder; the label is the name of the folder that holds them."""
    files = [p for p in sorted(source.rglob("*.*")) if p.is_file()]
    names = sorted({p.parent.name for p in files})
    labelled = [(path, names.index(path.parent.name)) for path in files]
    return read_images(labelled, 1, ArrayCache(cache_dir) if cache_dir else None)[0]


def series(source: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Merge train and test of tracks, and count pairs of one track in the same new split."""
    files = [p for p in sorted(source.rglob("*.*")) if p.is_file()]
    for naming in ("original names", "meaningless names"):
        track: dict[str, str] = {}
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            for i, path in enumerate(files):
                original = naming == "original names"
                name = path.name if original else f"{(i * 7919) % 10007}{path.suffix}"
                target = root / path.parent.name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
                number = re.split(r"_", path.stem)[0]
                track[str(target)] = f"{path.parent.name}/{number}"
            for seed in seeds:
                dataset = load_dataset(root, seed=seed)
                same, near = same_split_shares(dataset, track)
                print(
                    f"{naming:18} seed {seed}: pairs of one track in the same split "
                    f"{100 * same:.1f}%, near-duplicate pairs {100 * near:.1f}%; "
                    f"{len(dataset.train)} train, "
                    f"{len(dataset.val)} validation, {len(dataset.test or ())} test",
                    flush=True,
                )


def same_split_shares(dataset: Dataset, track: dict[str, str]) -> tuple[float, float]:
    """Return the shares of pairs of one track, and of near-duplicates, in the same split."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test or ()}
    split_of = {str(p.path): name for name, split in splits.items() for p in split}
    members: dict[str, list[str]] = {}
    for path in split_of:
        members.setdefault(track[path], []).append(path)
    pairs = [pair for paths in members.values() for pair in combinations(paths, 2)]
    same = [split_of[a] == split_of[b] for a, b in pairs]
    near = [split_of[str(p.first.path)] == split_of[str(p.second.path)] for p in dataset.pairs]
    return float(np.mean(same)), float(np.mean(near))


def wrong_labels(source: Path, cache_dir: Path | None, seeds: Sequence[int] = SEEDS) -> None:
    """Change 5% of the labels, and count those in the top tenth of the list of suspect labels."""
    from advisor.findings.statistics import suspect_labels
    from strategies.core.context import make_context
    from strategies.core.folds import fold_numbers
    from strategies.data.dataset import groups_of
    from strategies.heads.cross_validation import cross_validate, temperature
    from strategies.models.backbone import load_backbone
    from strategies.models.features import extract_features

    dataset = load_dataset(source)
    images = dataset.fit_split
    truth = labels_of(images)
    ctx = make_context(cache_dir=cache_dir)
    features = extract_features(images, load_backbone(), ctx).pooled[-1]
    n = len(truth)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        planted = rng.choice(n, round(0.05 * n), replace=False)
        labels = truth.copy()
        labels[planted] += rng.integers(1, dataset.n_classes, len(planted))
        labels %= dataset.n_classes
        folds = fold_numbers(labels, seed, groups=groups_of(images))
        tried = cross_validate(features, labels, dataset.n_classes, folds=folds)
        scores = tried.scores
        found = suspect_labels(scores / temperature(scores, labels)[0], labels)
        top = found.order[: round(0.1 * n)]
        confident = found.order[: found.n_confident]
        print(
            f"{source.name:10} seed {seed}: {100 * np.isin(planted, top).mean():.1f}% of "
            f"{len(planted)} planted errors in the top tenth; {found.n_confident} confidently "
            f"suspect labels, {100 * np.isin(confident, planted).mean():.0f}% of them planted",
            flush=True,
        )


def blurred(image: Image.Image) -> Image.Image:
    """Blur by a Gaussian whose standard deviation is 2% of the root of the area."""
    radius = 0.02 * math.sqrt(image.width * image.height)
    return image.filter(ImageFilter.GaussianBlur(radius))


def darkened(image: Image.Image) -> Image.Image:
    """Reduce every level to 20%."""
    return image.point(lambda level: level // 5)


def over_exposed(image: Image.Image) -> Image.Image:
    """Make every level three times as high, up to white."""
    return image.point(lambda level: min(255, 3 * level))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "TL017": blurred,
    "TL018": darkened,
    "TL019": over_exposed,
}


def bad_images(source: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Count the images that findings call bad, and how many of planted ones are found."""
    paths = [p for p in sorted(source.rglob("*.*")) if p.is_file()]
    images, _ = read_images([(path, 0) for path in paths], 2)
    counts = found_bad(images)
    n_changed = min(N_CHANGED, len(images) // 5)  # of more, the dataset would be like this
    line = [f"{source.name:17} {len(images):5} images"]
    for code, change in CHANGES.items():
        shares = []
        for seed in seeds:
            rows = np.random.default_rng(seed).permutation(len(images))[:n_changed]
            planted = {int(row): changed(images[row], change) for row in rows}
            mixed = tuple(planted.get(row, image) for row, image in enumerate(images))
            paths_found = found_bad(mixed)[code]
            shares.append(sum(p.path in paths_found for p in planted.values()) / len(planted))
        line.append(f"{code} {len(counts[code]):3}, planted {spread(shares)}")
    print("  ".join(line), flush=True)


def changed(image: LabelledImage, change: Callable[[Image.Image], Image.Image]) -> LabelledImage:
    """Return an image with the statistics of its changed pixels."""
    decoded = decode(read_bytes(image.path))
    stats = measure_image(replace(decoded, image=change(decoded.image)), 1)
    return replace(image, stats=stats)


def found_bad(images: Split) -> dict[str, set[Path]]:
    """Return the images that are called blurred, dark and over-exposed, by code."""
    from advisor.findings.quality import QUALITY_RULES
    from advisor.measure.probe_evidence import ProbeEvidence

    dataset = Dataset("", Path(), ("class",), images, (), None, "")
    rules = [rule(dataset, ProbeEvidence(0)) for rule in QUALITY_RULES]
    findings = [finding for found in rules for finding in found]
    return {c: {p.path for f in findings if f.code == c for p in f.affected} for c in CHANGES}


def spread(values: list[float]) -> str:
    """Format mean and range in per cent."""
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * float(np.mean(values)):5.1f}% [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
