"""Evaluate `advisor.similarity.domain_similarity` on ImageNet and the other shared datasets.

Run:      python benchmarks/domain.py [--lines 1 2 3 4 5 6 7 8] [--input-px 224]
          [--cache-dir FOLDER]
Cost:     some 25 minutes on two cores with an empty cache (features of 17,000 images); a fifth of
          that at 96 px, apart from the lines that compare it with 224 px.
Expected: one Markdown section for every number, as in docs/benchmarks/similarity.md.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from fit_domain import rows_of
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from shared_datasets import DESCRIPTIONS, FAR, NEAR, imagenet_halves, images_of
from sklearn.metrics import roc_auc_score

from advisor.decide.quadrant import SIMILAR_FROM
from advisor.similarity.bn_shift import (
    SourceMoments,
    balanced,
    layer_shifts,
    shift_intervals,
    small_sample_factor,
)
from advisor.similarity.calibration import Calibration, calibration
from advisor.similarity.domain_similarity import measure_similarity
from advisor.similarity.kernel_distance import (
    bootstrap_kernel_distance,
    cubic_kernels,
    kernel_distance,
    mmd2,
    permutation_p_value,
)
from advisor.similarity.reference import Reference, shipped_reference
from advisor.similarity.source_head import predict
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext, make_context
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Labels
from strategies.data.dataset import LabelledImage, labels_of
from strategies.heads.cross_validation import cross_validate
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.domain_shift import SHIFT_IMAGES, SHIFT_PX, measure_moments
from strategies.models.features import Features, extract_features

Sample = tuple[Features, Labels]
N_PROBED, N_VARIANTS = 200, 40
RULER_IMAGES = (100, 200, 300, 500)
GREY = ("pacs_sketch", "neu_surface", "pneumonia_cxr", "fsdd_spec", "mnist5k", "omniglot_small1")


class Bench:
    """Inputs that all sections share: features of datasets, shipped reference and calibration."""

    def __init__(self, cache_dir: Path | None, most_draws: int | None, input_px: int) -> None:
        self.most_draws = most_draws
        self.ctx: RunContext = make_context(cache_dir=cache_dir)
        self.backbone: Backbone = load_backbone(input_px=input_px)
        reference = shipped_reference(self.backbone)
        if reference is None:
            raise SystemExit("The backbone has no reference: run benchmarks/make_reference.py.")
        self.reference: Reference = reference
        self.scale: Calibration = calibration()
        self.known = reference.rows(self.backbone.input_px)
        source = reference.source(self.backbone.input_px)
        assert source is not None
        self.source: SourceMoments = source

    def imagenet(self) -> Sample:
        """Return the unseen half of the ImageNet images, as one class."""
        _, unseen = imagenet_halves()
        features = extract_features(unseen, self.backbone, self.ctx)
        return features, np.zeros(len(unseen), dtype=np.int64)

    def of(self, name: str, most: int = 1000) -> Sample:
        """Return features and labels of a dataset."""
        images = images_of(name, most)
        return extract_features(images, self.backbone, self.ctx), labels_of(tuple(images))

    def shift(
        self, features: Features, labels: Labels, source: SourceMoments | None = None
    ) -> float:
        """Return the mean BatchNorm shift."""
        assert features.moments is not None
        used = source or self.source
        return float(layer_shifts(features.moments, balanced(labels), used).mean())

    def score(self, features: Features, labels: Labels) -> float:
        """Return the point estimate of the similarity."""
        return self.scale.score(self.shift(features, labels))

    def draws(self, sample: Sample, n: int, count: int, seed: int) -> Iterator[Sample]:
        """Yield random samples of n images, without replacement."""
        features, labels = sample
        rng = np.random.default_rng(seed)
        for _ in range(count if self.most_draws is None else min(count, self.most_draws)):
            rows = rng.permutation(len(labels))[:n]
            yield rows_of(features, rows), labels[rows]


def frechet(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return the Fréchet distance of two samples, divided by their dimension (not debiased)."""
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    a, b = a / np.sqrt(len(a)), b / np.sqrt(len(b))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    whole = np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum()
    return float((whole - 2 * cross) / x.shape[1])


def type_1_errors(bench: Bench) -> None:
    """Type I errors on the half of imagenet_samples not used for reference or calibration."""
    known = bench.known
    tested = "" if known is None else " p <= 0.05 | p <= 0.01 |"
    print("| n | mean score | lowest score | called different |" + tested)
    print("|---|---|---|---|" + "---|" * tested.count("<="))
    rng = np.random.default_rng(3)
    sample = bench.imagenet()
    for n in (30, 100, 300):
        scores, p_values = [], []
        for features, labels in bench.draws(sample, n, 200, n):
            scores.append(bench.score(features, labels))
            if known is not None:
                kernels = cubic_kernels(features.pooled[-1], known)
                p_values.append(permutation_p_value(kernels, balanced(labels).share, 199, rng))
        different = np.mean(np.array(scores) < SIMILAR_FROM)
        print(f"| {n} | {np.mean(scores):.4f} | {min(scores):.3f} | {different:.1%} |", end="")
        levels = () if known is None else (0.05, 0.01)
        print(*(f" {np.mean(np.array(p_values) <= level):.1%} |" for level in levels), flush=True)


def sample_size(bench: Bench) -> None:
    """Dependence of the score on the number of images."""
    print("| dataset | score, all | abs. difference n = 50 to 500: mean | max ", end="")
    known = bench.known
    compared = "" if known is None else " Fréchet/d at 50 | at 500 |"
    print("| mean signed |" + compared + "\n|---|---|---|---|---|" + "---|" * compared.count("|"))
    for name in ("imagenet (unseen half)", *DESCRIPTIONS):
        sample = bench.of(name) if name in DESCRIPTIONS else bench.imagenet()
        few = [bench.score(*s) for s in bench.draws(sample, 50, 20, 1)]
        many = [bench.score(*s) for s in bench.draws(sample, 500, 20, 2)]
        change = np.array(few) - many
        plain = [
            np.mean([frechet(f.pooled[-1], known) for f, _ in bench.draws(sample, n, 2, 3)])
            for n in (50, 500)
            if known is not None
        ]
        print(f"| {name} | {bench.score(*sample):.3f} | {np.abs(change).mean():.4f} ", end="")
        print(f"| {np.abs(change).max():.3f} | {change.mean():+.4f} |", end="")
        print(*(f" {value:.2f} |" for value in plain), flush=True)


def separation(bench: Bench) -> None:
    """Area under the ROC curve of near against far datasets, for every single statistic.

    It needs features in the reference: at 128 or 224 px.
    """
    known = bench.known
    if known is None:
        print(f"The reference has no features at {bench.backbone.input_px} px.")
        return
    centre = known.mean(axis=0)
    axes = np.linalg.svd(known - centre, full_matrices=False)[2][:32].T

    def entropy(features: Features, labels: Labels) -> float:
        assert features.source_head is not None
        entropies = predict(features.source_head, features.pooled[-1]).entropy
        return float(balanced(labels).share @ entropies)

    statistics: dict[str, Callable[[Features, Labels], float]] = {
        "similarity": lambda f, y: -bench.score(f, y),
        "BatchNorm shift": bench.shift,
        "Fréchet": lambda f, _: frechet(f.pooled[-1], known),
        "Fréchet after PCA (32)": lambda f, _: frechet(f.pooled[-1] @ axes, known @ axes),
        "MMD²": lambda f, y: mmd2(cubic_kernels(f.pooled[-1], known), balanced(y).share),
        "kernel distance": lambda f, y: kernel_distance(
            cubic_kernels(f.pooled[-1], known), balanced(y).share
        ),
        "head entropy": entropy,
    }
    print("| statistic | n = 50 | n = 20 |\n|---|---|---|")
    areas: dict[str, list[str]] = {name: [] for name in statistics}
    for n in (50, 20):
        samples = [
            (name in FAR, *s)
            for name in (*NEAR, *FAR)
            for s in bench.draws(bench.of(name), n, 20, n)
        ]
        for name, statistic in statistics.items():
            values = [statistic(f, y) for _, f, y in samples]
            areas[name].append(f"{roc_auc_score([s[0] for s in samples], values):.4f}")
    for name, found in areas.items():
        print(f"| {name} | {' | '.join(found)} |", flush=True)


def coverage(bench: Bench) -> None:
    """Coverage: share of 90% intervals that contain the value of all images."""
    rng = np.random.default_rng(5)
    sizes = (30, 50, 100)
    statistics = ["shift"] if bench.known is None else ["shift", "kernel"]
    cells = [f"{statistic}, n = {n}" for statistic in statistics for n in sizes]
    print("| dataset | " + " | ".join(cells) + " |\n|" + "---|" * (1 + len(cells)))
    hits: list[list[float]] = []
    for name in DESCRIPTIONS:
        sample = bench.of(name)
        row = [_shift_coverage(bench, sample, n, rng) for n in sizes]
        if bench.known is not None:
            row += [_kernel_coverage(bench, sample, n, bench.known, rng) for n in sizes]
        hits.append(row)
        print(f"| {name} | " + " | ".join(f"{v:.0%}" for v in hits[-1]) + " |", flush=True)
    print("| **all** | " + " | ".join(f"{v:.1%}" for v in np.mean(hits, axis=0)) + " |")


def _shift_coverage(bench: Bench, sample: Sample, n: int, rng: np.random.Generator) -> float:
    whole = bench.shift(*sample)
    hits = []
    for features, labels in bench.draws(sample, n, 200, n + 7):
        assert features.moments is not None
        shift, _ = shift_intervals(features.moments, labels, bench.source, 0, rng)
        hits.append(shift.low <= whole <= shift.high)
    return float(np.mean(hits))


def _kernel_coverage(
    bench: Bench, sample: Sample, n: int, known: NDArray[np.float32], rng: np.random.Generator
) -> float:
    kernels = cubic_kernels(sample[0].pooled[-1], known)
    whole = kernel_distance(kernels, balanced(sample[1]).share)
    hits = []
    for features, labels in bench.draws(sample, n, 200, n + 7):
        kernels = cubic_kernels(features.pooled[-1], known)
        weights = balanced(labels)
        scatter = bootstrap_kernel_distance(kernels, weights, 200, rng)
        low, high = np.quantile(scatter * small_sample_factor(weights), [0.05, 0.95])
        mid = kernel_distance(kernels, weights.share)
        hits.append(mid + low <= whole <= mid + high)
    return float(np.mean(hits))


def transfer_correlation(bench: Bench) -> None:
    """Rank correlation of the score with the transfer gain of probes, and with the best depth."""
    rows = []
    for name in DESCRIPTIONS:
        images = _probed(name)
        labels = labels_of(tuple(images))
        accuracies: list[list[float]] = []
        for backbone in (bench.backbone, bench.backbone.with_random_weights()):
            features = extract_features(images, backbone, bench.ctx)
            depths = range(len(features.pooled)) if not accuracies else [-1]
            accuracies.append([_probe(features.pooled[d], labels) for d in depths])
        gap = max(accuracies[0]) - max(accuracies[1])
        best = 1 + int(np.argmax(accuracies[0]))
        score = bench.score(*bench.of(name))
        rows.append((score, gap, best))
        print(f"- {name}: similarity {score:.3f}, gap {gap:+.3f}, best depth {best}", flush=True)
    table = np.array(rows)
    rng = np.random.default_rng(9)
    for column, what in ((1, "gain of pretrained over random-init probes"), (2, "best depth")):
        found = spearmanr(table[:, 0], table[:, column]).statistic
        bootstrap_weights = []
        for _ in range(2000):
            rows_drawn = rng.integers(len(table), size=len(table))
            drawn = table[rows_drawn][:, [0, column]]
            if len(np.unique(drawn[:, 1])) > 1 and len(np.unique(drawn[:, 0])) > 1:
                bootstrap_weights.append(spearmanr(drawn[:, 0], drawn[:, 1]).statistic)
        low, high = np.quantile(bootstrap_weights, [0.05, 0.95])
        print(f"Rank correlation of similarity and {what}: {found:.2f} [{low:.2f}, {high:.2f}]")


def _probed(name: str) -> list[LabelledImage]:
    """Return images to probe: of at most 20 classes with three images or more."""
    images = images_of(name, N_PROBED)
    counts = np.bincount([p.label for p in images])
    kept = [c for c in np.argsort(-counts, kind="stable") if counts[c] >= 3][:20]
    number = {int(c): i for i, c in enumerate(kept)}
    return [
        LabelledImage(p.path, number[p.label], p.digest, p.width_px, p.height_px)
        for p in images
        if p.label in number
    ]


def _probe(features: NDArray[np.float32], labels: Labels) -> float:
    """Return the cross-validated accuracy of a linear probe at its best L2 strength."""
    n_classes = int(labels.max()) + 1
    found = cross_validate(
        features, labels, n_classes, folds=fold_numbers(labels, 0, 3), strengths=(1e-3, 1e-4, 1e-5)
    )
    return float(found.correct[found.best].mean())


def input_changes(bench: Bench) -> None:
    """Change of the score by another input size, greyscale, and JPEG quality 50."""
    own_px = bench.backbone.input_px
    sizes = [px for px in (96, 128, 224) if px != own_px]
    variants = [*(f"{px} px" for px in sizes), "grey", "JPEG 50"]
    print(f"| dataset | {own_px} px | " + " | ".join(variants) + " |")
    print("|" + "---|" * (2 + len(variants)))
    moved: dict[str, list[float]] = {}
    unseen = imagenet_halves()[1][:N_VARIANTS]
    with TemporaryDirectory() as folder:
        for name in ("imagenet (unseen half)", *DESCRIPTIONS):
            one_class = name not in DESCRIPTIONS
            images = unseen if one_class else images_of(name, N_VARIANTS)
            labels = np.zeros(len(unseen), int) if one_class else labels_of(tuple(images))
            plain = bench.score(extract_features(images, bench.backbone, bench.ctx), labels)
            found: dict[str, float] = {}
            for px in sizes:
                source = bench.reference.source(px)
                features = extract_features(images, load_backbone(input_px=px), bench.ctx)
                found[f"{px} px"] = bench.scale.score(bench.shift(features, labels, source))
            for what in ("grey", "JPEG 50"):
                if what == "grey" and name in GREY:
                    continue
                changed = [_changed(p, what, Path(folder)) for p in images]
                features = extract_features(changed, bench.backbone, bench.ctx)
                found[what] = bench.score(features, labels)
            for what, score in found.items():
                moved.setdefault(what, []).append(score - plain)
            cells = [f"{found[w] - plain:+.3f}" if w in found else "is grey" for w in variants]
            print(f"| {name} | {plain:.3f} | " + " | ".join(cells) + " |", flush=True)
    for what, changes in moved.items():
        size = np.abs(changes)
        print(f"{what}: changes scores by {size.mean():.3f} on average, {size.max():.3f} at most")


def _changed(image: LabelledImage, what: str, folder: Path) -> LabelledImage:
    """Write a greyscale or JPEG copy of an image, named by its content."""
    path = folder / f"{image.digest}-{what.replace(' ', '')}"
    with Image.open(image.path) as opened:
        rgb = opened.convert("RGB")
    if what == "grey":
        path = path.with_suffix(".png")
        rgb.convert("L").save(path)
    else:
        path = path.with_suffix(".jpg")
        rgb.save(path, quality=50)
    return LabelledImage(path, image.label, path.stem, image.width_px, image.height_px)


def cost(bench: Bench) -> None:
    """Cost of the similarity: a forward pass of its own, and the statistics."""
    images = images_of("flowers5", 2 * SHIFT_IMAGES)
    print("| forward pass | CPU s per image |\n|---|---|")
    with TemporaryDirectory() as folder:
        for px in (SHIFT_PX, 224):
            ctx = replace(bench.ctx, cache=ArrayCache(Path(folder)))
            start = time.process_time()
            extract_features(images[:SHIFT_IMAGES], load_backbone(input_px=px), ctx)
            seconds = (time.process_time() - start) / min(SHIFT_IMAGES, len(images))
            print(f"| {px} px, decoding included | {seconds:.4f} |", flush=True)
    sample = measure_moments(images, bench.ctx)
    start = time.process_time()
    measure_similarity(sample, 0)
    print(f"\nmeasure_similarity: {time.process_time() - start:.2f} CPU s")


def ruler_sizes(bench: Bench) -> None:
    """Input size and number of images of the similarity: how well it separates datasets."""
    print("| input | sd between datasets | sd within, n = 50 | ratio ", end="")
    print("| AUC near/far, n = 10 |", *(f"half interval, n = {n} |" for n in RULER_IMAGES))
    print("|" + "---|" * (5 + len(RULER_IMAGES)))
    for px in (SHIFT_PX, 224):
        backbone = load_backbone(input_px=px)
        source = bench.reference.source(px)
        found = {}
        for name in DESCRIPTIONS:
            images = images_of(name)
            features = extract_features(images, backbone, bench.ctx)
            found[name] = features, labels_of(tuple(images))
        scores = {
            (name, n): [
                bench.scale.score(bench.shift(*drawn, source))
                for drawn in bench.draws(sample, n, 30, n)
            ]
            for name, sample in found.items()
            for n in (10, 50)
        }
        between = np.std([np.mean(scores[name, 50]) for name in found])
        within = np.sqrt(np.mean([np.var(scores[name, 50]) for name in found]))
        drawn = [(name in FAR, -s) for name in (*NEAR, *FAR) for s in scores[name, 10]]
        area = roc_auc_score(*zip(*drawn, strict=True))
        widths = [_half_width(bench, found, n, source) for n in RULER_IMAGES]
        ratio = between / within if within else float("inf")
        print(f"| {px} px | {between:.3f} | {within:.4f} | {ratio:.1f} ", end="")
        print(f"| {area:.4f} |", *(f"{w:.4f} |" for w in widths), flush=True)


def _half_width(
    bench: Bench, samples: Mapping[str, Sample], n: int, source: SourceMoments | None
) -> float:
    """Return half the mean width of the similarity's 90% interval over the datasets."""
    rng = np.random.default_rng(n)
    widths = []
    for sample in samples.values():
        for features, labels in bench.draws(sample, n, 1, n):
            assert features.moments is not None
            shift, _ = shift_intervals(features.moments, labels, source, 0, rng)
            score = bench.scale.interval(shift)
            widths.append((score.high - score.low) / 2)
    return float(np.mean(widths))


_SECTIONS = (type_1_errors, sample_size, separation, coverage, transfer_correlation)
LINES = dict(enumerate((*_SECTIONS, input_changes, cost, ruler_sizes), start=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--lines", type=int, nargs="*", default=list(LINES), choices=list(LINES))
    parser.add_argument("--most-draws", type=int, help="limit of random samples; default: none")
    parser.add_argument("--input-px", type=int, default=SHIFT_PX, help="default: %(default)s")
    options = parser.parse_args(argv)
    bench = Bench(options.cache_dir, options.most_draws, options.input_px)
    for number in options.lines:
        print(f"\n### {number}. {LINES[number].__doc__}\n", flush=True)
        start = time.monotonic()
        LINES[number](bench)
        print(f"\n({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
