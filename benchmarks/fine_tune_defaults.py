"""Compare default hyperparameters of full fine-tuning with the best hand-picked ones.

One row per fit is appended to the file; fits that have a row are skipped. Then a table is printed:
mean and standard deviation of test accuracy over seeds.

Run:      python benchmarks/fine_tune_defaults.py --data-root FOLDER --out FILE
Cost:     25 minutes on one core: a linear probe and a full fine-tune at 96 px for 7 cases and 3
          seeds. `--sets` without names prints the table of existing rows in seconds.
Expected: docs/benchmarks/training.md.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pinned_split import load_pinned
from rows import append_row, read_rows

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import make_context
from strategies.data.dataset import Dataset, LabelledImage
from strategies.models.backbone import load_backbone
from strategies.models.classifier import evaluate
from strategies.registry import get_strategy

ROWS = {
    ("cats_dogs", 15): 91.0,
    ("flowers5", 15): 78.7,
    ("neu_surface", 8): 98.3,
    ("sign_digits", 10): 92.8,
    ("sign_digits", 120): 97.8,
    ("gtsrb", 10): 79.9,
    ("hymenoptera", 15): None,
}
"""Dataset and train images per class, with the best accuracy of hand-picked hyperparameters
(one seed)."""
MAX_TEST = 600


def main(argv: Sequence[str] | None = None) -> None:
    """Run the fits that have no row yet, then print the table."""
    args = _arguments(argv)
    keep_freed_memory()
    for name, n in ROWS:
        todo = [
            (seed, strategy)
            for seed in args.seeds
            for strategy in ("linear_probe", "full_fine_tune")
            if (name in args.sets) and (name, n, seed, strategy) not in _rows(args.out)
        ]
        dataset = load_pinned(args.data_root / name) if todo else None
        for seed, strategy in todo:
            assert dataset is not None
            row = {"set": name, "n_per_class": n, "seed": seed, "strategy": strategy}
            row |= fit(draw(dataset, n, seed), strategy, seed, args)
            append_row(args.out, row)
    print(table(_rows(args.out)))


def draw(dataset: Dataset, n: int, seed: int) -> Dataset:
    """Draw `n` train images per class, `n` / 5 for validation, and at most 600 test images."""
    rng = np.random.default_rng(seed)
    train: list[LabelledImage] = []
    val: list[LabelledImage] = []
    for label in range(dataset.n_classes):
        rows = [p for p in dataset.fit_split if p.label == label]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        train += rows[:n]
        val += rows[n : n + max(1, n // 5)]
    return fill_test(dataset, replace(dataset, train=tuple(train), val=tuple(val)), seed)


def fill_test(dataset: Dataset, drawn: Dataset, seed: int) -> Dataset:
    """Return a subsample of a dataset with 600 test images, or as many as there are.

    A smaller test split is filled up with train and validation images that were not drawn, except
    images of a group (duplicates, frames of one track) of which another image was drawn.
    """
    assert dataset.test is not None
    order = np.random.default_rng(0).permutation(len(dataset.test))[:MAX_TEST]
    test = [dataset.test[i] for i in sorted(order)]
    used = {p.path for p in drawn.fit_split}
    groups = {p.group for p in drawn.fit_split if p.group >= 0}
    left = [p for p in dataset.fit_split if p.path not in used and p.group not in groups]
    order = np.random.default_rng(seed).permutation(len(left))[: MAX_TEST - len(test)]
    return replace(drawn, test=(*test, *(left[i] for i in order)))


def fit(dataset: Dataset, strategy: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Fit once with default hyperparameters and evaluate on test."""
    backbone = load_backbone(input_px=args.input_px)
    ctx = make_context(cache_dir=args.cache_dir, seed=seed)
    start = time.monotonic()
    given = {"steps": args.steps} if args.steps and strategy == "full_fine_tune" else {}
    chosen = get_strategy(strategy).from_hyperparameters(given)
    fitted = chosen.fit(dataset.hide_test(), backbone, ctx)
    seconds = time.monotonic() - start
    assert dataset.test is not None
    found = evaluate(fitted, dataset.test)
    return {
        "n_train": len(dataset.train),
        "n_val": len(dataset.val),
        "n_test": found.n,
        "accuracy": found.accuracy.mid,
        "calibration_error": found.calibration_error,
        "hyperparameters": dict(fitted.hyperparameters),
        "seconds": round(seconds, 1),
    }


def table(rows: dict[tuple[str, int, int, str], float]) -> str:
    """Return mean and standard deviation of test accuracy in Markdown."""
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for (name, n, _, strategy), accuracy in rows.items():
        found[name, n, strategy].append(100 * accuracy)
    lines = [
        "| dataset, train images per class | linear probe | full fine-tune | hand-picked |",
        "|---|---|---|---|",
    ]
    for (name, n), by_hand in ROWS.items():
        cells = []
        for strategy in ("linear_probe", "full_fine_tune"):
            values = found.get((name, n, strategy))
            spread = f" ± {np.std(values, ddof=1):.1f}" if values and len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread} ({len(values)})" if values else "–")
        lines.append(f"| {name}, {n} | {' | '.join(cells)} | {by_hand or '–'} |")
    return "\n".join(lines)


def _rows(out: Path) -> dict[tuple[str, int, int, str], float]:
    return {
        (r["set"], r["n_per_class"], r["seed"], r["strategy"]): r["accuracy"]
        for r in read_rows(out)
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/fine_tune_defaults.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--sets", nargs="*", default=sorted({name for name, _ in ROWS}))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--steps", type=int, help="of the fine-tune; default: its default")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
