"""Compare the layer SVM with the linear probe on datasets near to and far from ImageNet.

Both are fitted to all images of a cell (dataset, images per class, seed) with their default
hyperparameters, and evaluated on the same test images (filled up to 600 with train and validation
images that were not drawn), so the intervals of the table are of paired differences. Every fit has
one row, appended when it is done; fits that have a row are skipped.

Run:      python benchmarks/probes.py --out benchmarks/probes.jsonl
          python benchmarks/probes.py --table
Cost:     a quarter of an hour on one core; `--table` takes seconds.
Expected: docs/benchmarks/probes.md.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fine_tune_defaults import fill_test
from numpy.typing import NDArray
from pinned_split import load_pinned
from rows import append_row, read_rows
from run_suite import subsample
from scipy.stats import norm
from shared_datasets import NEAR

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, make_context
from strategies.core.metrics import LEVEL
from strategies.data.dataset import Dataset, labels_of
from strategies.models.backbone import Backbone, load_backbone
from strategies.registry import get_strategy

SETS = (
    *NEAR,
    "dtd10",
    "sign_digits",
    "neu_surface",
    "fsdd_spec",
    "mnist5k",
    "gtsrb",
    "pacs_sketch",
    "trash6",
)
WHO = ("linear_probe", "layer_svm")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the fits that have no row yet, or print the table of existing rows."""
    args = _arguments(argv)
    keep_freed_memory()
    if args.table:
        print_table(read_rows(args.out))
        return
    backbone = load_backbone(input_px=args.input_px)
    for seed in args.seeds:
        ctx = make_context(cache_dir=args.cache_dir, seed=seed)
        for n in args.n_per_class:
            for name in args.sets:
                done = {r["who"] for r in read_rows(args.out) if _cell(r) == (name, n, seed)}
                todo = [who for who in WHO if who not in done]
                if todo:
                    whole = load_pinned(args.data_root / name)
                    dataset = fill_test(whole, subsample(whole, n, seed), seed)
                for who in todo:
                    row = {"set": name, "n_per_class": n, "seed": seed, "who": who}
                    row |= run(who, dataset, backbone, ctx)
                    append_row(args.out, row)
                    print(json.dumps({k: v for k, v in row.items() if k != "hits"}), flush=True)


def run(who: str, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> dict[str, Any]:
    """Fit once and evaluate on test."""
    assert dataset.test is not None
    start = time.monotonic()
    fitted = get_strategy(who)().fit(dataset.hide_test().with_val_in_train(), backbone, ctx)
    seconds = time.monotonic() - start
    found = fitted.predict_proba([p.path for p in dataset.test])
    hits = found.argmax(1) == labels_of(dataset.test)
    return {
        "accuracy": float(hits.mean()),
        "n_test": len(hits),
        "hits": np.packbits(hits).tobytes().hex(),
        "seconds": round(seconds, 2),
        "hyperparameters": dict(fitted.hyperparameters),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print both accuracies, their paired difference with its interval, and the chosen depths."""
    print(
        "| dataset, images per class (draws) | linear probe | layer SVM | "
        "SVM minus probe, points | sd over draws | depth, pooling (draws) |"
    )
    print("|---|---|---|---|---|---|")
    for name, n in dict.fromkeys((r["set"], r["n_per_class"]) for r in rows):
        cell = [r for r in rows if (r["set"], r["n_per_class"]) == (name, n)]
        by = {(r["who"], r["seed"]): r for r in cell}
        seeds = [s for w, s in by if w == WHO[0] and (WHO[1], s) in by]
        if not seeds:
            continue
        probe, svm = ([_hits(by[w, s]) for s in seeds] for w in WHO)
        each = [b - a for a, b in zip(probe, svm, strict=True)]
        gaps = [100 * x.mean() for x in each]
        # Seeds share most test images; assume that they share all of them.
        half = 100 * norm.ppf(0.5 + LEVEL / 2) * np.sqrt(np.mean([x.var() / len(x) for x in each]))
        mid, means = np.mean(gaps), [100 * np.mean([x.mean() for x in w]) for w in (probe, svm)]
        used = [by[WHO[1], s]["hyperparameters"] for s in seeds]
        depths = Counter(f"{h['depth']} {h['pooling']}" for h in used)
        chosen = ", ".join(f"{depth} ({count})" for depth, count in depths.most_common())
        print(
            f"| {name}, {n} ({len(seeds)}) | {means[0]:.1f} | {means[1]:.1f} | "
            f"{mid:+.1f} [{mid - half:+.1f}, {mid + half:+.1f}] | "
            f"{np.std(gaps, ddof=1) if len(gaps) > 1 else 0:.1f} | {chosen} |"
        )


def _hits(row: dict[str, Any]) -> NDArray[np.float64]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), dtype=np.uint8))
    return bits[: row["n_test"]].astype(np.float64)


def _cell(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["set"], row["n_per_class"], row["seed"]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/probes.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--n-per-class", nargs="*", type=int, default=[10, 50])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--table", action="store_true", help="print the table of existing rows")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
