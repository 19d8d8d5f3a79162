"""Check claims from the literature on our datasets and print on how many cases each held.

The first claim (a head on features of 1 image per class against a head on raw pixels of 10) is
measured here, with five draws of images per dataset. The others are read from the suite's rows
and their evidence, and from ``claims.jsonl``, which holds grid entries that only some datasets
were run with.

Run:      python benchmarks/claims.py --data-root FOLDER --cache-dir FOLDER --plot FILE.svg
Rows:     python benchmarks/run_suite.py --out benchmarks/claims.jsonl --no-evidence --seeds 0 \
              --n-per-class 5 20 100 --sets NAME ... --grid 11 12 13 14 15 16 17
Cost:     half a minute for three datasets on one core, the rows not included.
Expected: the table of docs/benchmarks/claims.md; not every claim holds.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from claim_results import ClaimResult, fixed, is_default, pairs, with_error
from frozen_stages import freezing_by_size, freezing_table, freezing_when_few, plot
from numpy.typing import NDArray
from pinned_split import load_pinned
from rows import EVIDENCE, RESULTS, Case, Row, read_inputs, read_rows
from run_suite import REFERENCE_SET, subsample
from scipy.stats import spearmanr

from advisor.decide.candidates import DecisionInputs
from strategies.core.context import RunContext, make_context
from strategies.data.dataset import Split, labels_of
from strategies.heads.cross_validation import fit_head
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.features import eval_pixels, extract_features
from strategies.training.defaults import FEW, MANY, NEAR_LR

PER_CLASS, DRAWS, PIXEL_SIDE = 10, 5, 32
FEATURES_STRENGTH, PIXELS_STRENGTH = 1e-3, 1e-2
SMALL_STEPS = 1.5
"""Rows with a learning rate below this multiple of `NEAR_LR` are compared with `NEAR_LR`."""
EXTRA = EVIDENCE.parent / "claims.jsonl"
SUITE_PX = 96
"""Input size of the suite's rows that the claims are checked on."""


def one_image_against_ten(root: Path, names: list[str], ctx: RunContext, px: int) -> ClaimResult:
    """Compare a head on features of one image per class with a head on raw pixels of ten."""
    backbone = load_backbone(input_px=px)
    held, details = 0, []
    for name in names:
        gaps = []
        whole = load_pinned(root / name)
        for draw in range(DRAWS):
            dataset = subsample(whole, PER_CLASS, draw)
            assert dataset.test is not None
            ten = dataset.fit_split
            one = _first_of_each_class(ten)
            gaps.append(
                _accuracy(one, dataset.test, dataset.n_classes, _features(backbone, ctx), 1)
                - _accuracy(ten, dataset.test, dataset.n_classes, _pixels(backbone), 10)
            )
        held += float(np.mean(gaps)) > 0
        details.append(f"{name} {100 * np.mean(gaps):+.0f}")
        print(f"  {details[-1]} points", flush=True)
    return ClaimResult(
        "features with 1 image per class beat raw pixels with 10",
        "DeCAF 2014",
        held,
        len(names),
        "points: " + ", ".join(details),
    )


def _first_of_each_class(split: Split) -> Split:
    return tuple({p.label: p for p in reversed(split)}.values())


Reader = Callable[[Split], NDArray[np.float32]]


def _features(backbone: Backbone, ctx: RunContext) -> Reader:
    return lambda split: extract_features(split, backbone, ctx).pooled[-1]


def _pixels(backbone: Backbone) -> Reader:
    small = replace(backbone, input_px=PIXEL_SIDE)

    def read(split: Split) -> NDArray[np.float32]:
        rows = [eval_pixels(p.path, small).ravel() for p in split]
        pixels: NDArray[np.float32] = np.stack(rows).astype(np.float32) / np.float32(255)
        return pixels

    return read


def _accuracy(train: Split, test: Split, n_classes: int, read: Reader, n_per_class: int) -> float:
    strength = FEATURES_STRENGTH if n_per_class == 1 else PIXELS_STRENGTH
    head = fit_head(read(train), labels_of(train), n_classes, strength)
    return float(np.mean(head.scores(read(test)).argmax(axis=1) == labels_of(test)))


def svm_equals_softmax(inputs: dict[Case, DecisionInputs]) -> ClaimResult:
    """Compare cross-validated softmax regression with an SVM on the penultimate features."""
    gaps = []
    for profile in (i.profile for i in inputs.values()):
        last = len(profile.depth_names)
        svm = next(p for p in profile.probes if p.depth == last and p.loss == "squared_hinge")
        gaps.append(svm.gain_over_penultimate)
    equal = sum(g.low <= 0 <= g.high for g in gaps)
    mids = 100 * np.array([g.mid for g in gaps])
    return ClaimResult(
        "logistic regression and SVM are on par on the penultimate features",
        "DeCAF 2014, Razavian 2014",
        equal,
        len(gaps),
        f"SVM minus softmax {mids.mean():+.1f} points on average, {mids.min():+.1f} to "
        f"{mids.max():+.1f}; on par: 90% interval contains 0",
    )


def earlier_depth_when_far(inputs: dict[Case, DecisionInputs]) -> ClaimResult:
    """Check whether the best depth is the earlier, the farther the domain is from ImageNet."""
    far, share = [], []
    for profile in (i.profile for i in inputs.values()):
        svms = [p for p in profile.probes if p.loss == "squared_hinge" and p.depth > 0]
        best = max(svms, key=lambda p: p.accuracy.mid).depth
        far.append(1 - profile.similarity.score.mid)
        share.append(best / len(profile.depth_names))
    distant = [s for f, s in zip(far, share, strict=True) if f > 0.5]
    rho = float(spearmanr(far, share).statistic) if len(far) > 2 else float("nan")
    return ClaimResult(
        "the farther the domain from ImageNet, the earlier the best depth",
        "Yosinski 2014, CS231n",
        sum(s < 1 for s in distant),
        len(distant),
        f"held: best depth before the last at similarity below 0.5; rank correlation of distance "
        f"and best depth {rho:+.2f} over {len(far)} cases",
    )


def small_learning_rate_when_near(
    rows: list[Row], inputs: dict[Case, DecisionInputs]
) -> ClaimResult:
    """Check whether a small learning rate is better near ImageNet, and a large one far from it."""
    found = []
    for case, gap in pairs(rows, fixed("full_fine_tune", lr=3e-4), fixed("full_fine_tune")):
        profile = inputs[case].profile if case in inputs else None
        if profile is not None:
            found.append((profile.similarity.score.mid, gap))
    held = sum((gap > 0) == (score >= 0.5) for score, gap in found)
    near = [gap for score, gap in found if score >= 0.5]
    far = [gap for score, gap in found if score < 0.5]
    return ClaimResult(
        "small learning rates for the body near ImageNet, large ones far from it",
        "CS231n",
        held,
        len(found),
        f"lr 3e-4 minus 1e-3, full fine-tuning, blend 1: "
        f"{with_error(near)} points near, {with_error(far)} far",
    )


def interpolated_weights(rows: list[Row], inputs: dict[Case, DecisionInputs]) -> ClaimResult:
    """Check whether weights between pretrained and fine-tuned ones beat the fine-tuned ones.

    Gains are grouped by the number of train images that a linear probe classifies wrongly.
    """
    found: list[dict[str, list[float]]] = [defaultdict(list) for _ in range(3)]
    for case, gap in pairs(rows, _interpolates, fixed("full_fine_tune", lr=NEAR_LR)):
        if case in inputs:
            errors = 1 - inputs[case].profile.linear_probe.accuracy.mid
            size = int(np.digitize(inputs[case].profile.n_train * errors, (FEW, MANY)))
            found[size][case.dataset].append(gap)
    gaps = [gap for by_set in found for of_set in by_set.values() for gap in of_set]
    where = (f"fewer than {FEW}", f"{FEW} to {MANY}", f"more than {MANY}")
    details = [
        f"{with_error([float(np.mean(g)) for g in by_set.values()])} with {words}"
        for words, by_set in zip(where, found, strict=True)
        if by_set
    ]
    return ClaimResult(
        "weights between pretrained and fine-tuned ones beat the fine-tuned ones",
        "WiSE-FT 2022",
        sum(gap > 0 for gap in gaps),
        len(gaps),
        f"full fine-tuning where its defaults have a small learning rate and blend < 1, minus lr "
        f"{NEAR_LR:g} with blend 1, by the number of train images that a linear probe classifies "
        "wrongly, points: " + ", ".join(details),
    )


def _interpolates(row: Row) -> bool:
    """Return whether a row's defaults have a learning rate near `NEAR_LR` and `blend` below 1."""
    if not is_default(row, "full_fine_tune"):
        return False
    used = row["hyperparameters"]
    return bool(used["lr"] < SMALL_STEPS * NEAR_LR and used["blend"] < 1)


def augmented_is_better(rows: list[Row]) -> ClaimResult:
    """Check whether an SVM on six views of every image beats one on a single view."""

    def last_depth(views: int) -> Callable[[Row], bool]:
        return lambda r: r["grid"] == {"depth": -1, "views": views}

    by_size: dict[int, list[float]] = defaultdict(list)
    for case, gap in pairs(rows, last_depth(6), last_depth(1)):
        by_size[case.n_per_class].append(gap)
    gaps = [gap for of_size in by_size.values() for gap in of_size]
    details = [
        f"{with_error(of_size)} with {n} images per class"
        for n, of_size in sorted(by_size.items())
    ]
    return ClaimResult(
        "an SVM on augmented images beats one on plain images",
        "Razavian 2014 (CNNaug-SVM)",
        sum(gap > 0 for gap in gaps),
        len(gaps),
        "datasets and sizes; six views minus one, last depth, points: " + ", ".join(details),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of claims and the table of frozen stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--extra", type=Path, default=EXTRA, help="rows of some datasets only")
    parser.add_argument("--plot", type=Path, help="SVG file for accuracy over frozen stages")
    parser.add_argument("--sets", nargs="*", help="datasets; default: all in the data root")
    parser.add_argument("--input-px", type=int, default=96)
    args = parser.parse_args(argv)
    names = args.sets or sorted(
        p.name for p in args.data_root.iterdir() if p.is_dir() and p.name != REFERENCE_SET
    )
    inputs = {c: i for c, i in read_inputs(args.evidence).items() if c[3] == SUITE_PX}
    suite = [row for row in read_rows(args.results) if row["input_px"] == SUITE_PX]
    extra = read_rows(args.extra)
    ctx = make_context(cache_dir=args.cache_dir)
    results = [
        one_image_against_ten(args.data_root, names, ctx, args.input_px),
        svm_equals_softmax(inputs),
        earlier_depth_when_far(inputs),
        small_learning_rate_when_near(suite, inputs),
        interpolated_weights(suite, inputs),
        freezing_when_few(suite + extra),
        freezing_by_size(suite),
        augmented_is_better(extra),
    ]
    print("| claim | source | held | numbers |\n|---|---|---|---|")
    for result in results:
        if result.cases:
            print(result.row())
    print("\n" + freezing_table(suite + extra))
    if args.plot is not None:
        args.plot.write_text(plot(suite + extra))


if __name__ == "__main__":
    main()
