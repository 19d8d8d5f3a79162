"""Compare the speed of our solver of linear heads with scikit-learn's, on cross-validated paths.

Both solve the same problems at every depth: standardised features, ten L2 strengths, five folds,
softmax loss. Times are CPU seconds of the solver, so set OMP_NUM_THREADS=1; features are extracted
before. Every depth has one row, appended when it is done. Depth 0 is all depths concatenated.

Run:      OMP_NUM_THREADS=1 python benchmarks/probe_speed.py --depths 1 2 3 4 5 6 0
          python benchmarks/probe_speed.py --table
          python benchmarks/probe_speed.py --synthetic 100000    # time and memory of our solver
Cost:     mostly scikit-learn's time, which `--table` prints; `--table` itself takes seconds.
Expected: equal accuracy in a fraction of the time (docs/benchmarks/probes.md).
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pinned_split import load_pinned
from rows import append_row, read_rows
from run_suite import subsample
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import make_context
from strategies.core.folds import fold_numbers
from strategies.data.dataset import groups_of, labels_of
from strategies.heads.cross_validation import cross_validate, fit_head
from strategies.layer_svm import depth_set
from strategies.models.backbone import load_backbone
from strategies.models.features import extract_features

STRENGTHS = tuple(float(s) for s in np.logspace(-2, -6.5, 10))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the depths asked for, or print the table of existing rows."""
    args = _arguments(argv)
    keep_freed_memory()
    if args.table:
        print_table(read_rows(args.out))
        return
    if args.synthetic:
        run_synthetic(args.synthetic)
        return
    backbone = load_backbone(input_px=96)
    ctx = make_context(cache_dir=args.cache_dir, seed=0)
    dataset = subsample(load_pinned(args.data_root / args.set), args.n_per_class, 0)
    images = dataset.fit_split
    features, labels = extract_features(images, backbone, ctx), labels_of(images)
    folds = fold_numbers(labels, 0, groups=groups_of(images))
    for depth in args.depths:
        x = features.at(depth_set(depth, backbone))
        start = time.process_time()
        ours = cross_validate(
            x, labels, dataset.n_classes, folds=folds, strengths=STRENGTHS
        ).correct
        row = {"set": args.set, "depth": depth, "n": len(x), "width": x.shape[1]}
        row |= {"n_classes": dataset.n_classes, "max_iter": args.max_iter}
        row |= {"ours_s": time.process_time() - start, "ours": ours.mean(1).tolist()}
        start = time.process_time()
        theirs, unfinished = scikit_learn(x, labels, folds, args.max_iter)
        row |= {"theirs_s": time.process_time() - start, "theirs": theirs.mean(1).tolist()}
        row["unfinished"] = unfinished
        append_row(args.out, row)
        print(json.dumps(row), flush=True)


def run_synthetic(n: int, width: int = 1280, n_classes: int = 10) -> None:
    """Print time and peak memory of our solver on random features of overlapping classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % n_classes
    x = rng.normal(size=(n, width)).astype(np.float32)
    x += 0.05 * rng.normal(size=(n_classes, width)).astype(np.float32)[labels]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start = time.process_time()
    tried = cross_validate(x, labels, n_classes, folds=fold_numbers(labels, 0))
    between = time.process_time()
    fit_head(x, labels, n_classes, tried.strengths[tried.best])
    row = {"n": n, "width": width, "path_s": round(between - start, 1)}
    row |= {"fit_s": round(time.process_time() - between, 1), "features_gb": x.nbytes / 1e9}
    row |= {
        "before_gb": before,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    print(json.dumps(row | {"accuracy": tried.correct[tried.best].mean()}))


def scikit_learn(
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    max_iter: int,
) -> tuple[NDArray[np.bool_], int]:
    """Return which out-of-fold predictions are correct, (strengths, n), and unconverged fits."""
    scaled = (x - x.mean(0)) / (np.maximum(x.std(0), 1e-9) * np.sqrt(x.shape[1]))
    hits = np.zeros((len(STRENGTHS), len(x)), dtype=bool)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        for k in range(int(folds.max()) + 1):
            seen, out = folds != k, folds == k
            for s, strength in enumerate(STRENGTHS):
                # scikit-learn minimises C * sum of losses + |w|^2 / 2.
                model = LogisticRegression(C=1 / (strength * seen.sum()), max_iter=max_iter)
                found = model.fit(scaled[seen], labels[seen]).predict(scaled[out])
                hits[s, out] = found == labels[out]
    return hits, sum(issubclass(w.category, ConvergenceWarning) for w in caught)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print times and cross-validated accuracies by depth, and total times."""
    for name, most in dict.fromkeys((r["set"], r["max_iter"]) for r in rows):
        some = [r for r in rows if (r["set"], r["max_iter"]) == (name, most)]
        print(f"{name}, n = {some[0]['n']}, scikit-learn's max_iter = {most}")
        print(
            "| depth | width | ours | scikit-learn | speed-up | best accuracy, %: ours, theirs |"
        )
        print("|---|---|---|---|---|---|")
        for r in some:
            best = f"{100 * max(r['ours']):.1f}, {100 * max(r['theirs']):.1f}"
            ratio = r["theirs_s"] / r["ours_s"]
            print(
                f"| {r['depth'] or 'all'} | {r['width']} | {r['ours_s']:.2f} s | "
                f"{r['theirs_s']:.1f} s | {ratio:.0f} | {best} |"
            )
        ours, theirs = (sum(r[k] for r in some) for k in ("ours_s", "theirs_s"))
        print(f"| total | | {ours:.1f} s | {theirs:.0f} s | {theirs / ours:.0f} | |\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/probe_speed.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--set", default="cifar10")
    parser.add_argument("--n-per-class", type=int, default=100)
    parser.add_argument("--depths", nargs="*", type=int, default=[1, 2, 3, 4, 5, 6, 0])
    parser.add_argument("--max-iter", type=int, default=1000)
    parser.add_argument("--synthetic", type=int, help="number of images with random features")
    parser.add_argument("--table", action="store_true", help="print the table of existing rows")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
