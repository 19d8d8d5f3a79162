"""Run the suite: fit all strategies on datasets of several sizes, and measure their evidence.

Every fit has one row in ``results.jsonl``, and every case (dataset, size, seed) one row with its
profile in ``evidence.jsonl``. Rows are appended; existing ones are not measured again. Every
folder of class folders (or of train/ and test/) in the data root is a dataset. Every fit starts
with an empty cache, so its seconds are those of a first fit. An entry of the grid is run on all
cases before the next one starts, so that a suite stopped early has the first entries on all cases.

Run:      python benchmarks/run_suite.py --data-root FOLDER --n-per-class 5 20 --seeds 0
Cost:     seconds per linear head, up to minutes per fine-tune on one core; days for everything.
Expected: rows as in results.jsonl and evidence.jsonl; read by fit_priors, regret, transfer_risk
          and claims.
"""

import argparse
import contextlib
import functools
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pinned_split import load_pinned
from rows import (
    EVIDENCE,
    RESULTS,
    Case,
    Row,
    append_row,
    case_of,
    inputs_record,
    pack_hits,
    read_inputs,
    read_rows,
)

from advisor.decide.candidates import DecisionInputs, make_candidates
from advisor.measure.profile import measure
from advisor.similarity.transferability import rate_features
from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, make_context
from strategies.data.dataset import Dataset, LabelledImage, Split, labels_of
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.models.classifier import evaluate_probabilities
from strategies.models.features import extract_features
from strategies.registry import get_strategy

NO_BLEND: dict[str, Any] = {"blend": 1.0}
"""Fine-tuned weights without blending; with a given learning rate nothing depends on evidence."""
GRID: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear_probe", {}),
    ("layer_svm", {}),
    ("full_fine_tune", {}),
    ("full_fine_tune", {"lr": 1e-3, **NO_BLEND}),
    ("partial_fine_tune", {}),
    ("from_scratch", {}),
    ("partial_fine_tune", {"lr": 1e-3, **NO_BLEND}),
    ("full_fine_tune", {"lr": 1e-3, **NO_BLEND, "batch_norm": "trained"}),
    ("partial_fine_tune", {"lr": 1e-3, **NO_BLEND, "frozen_stages": 2}),
    ("full_fine_tune", {"lr": 3e-4, **NO_BLEND}),
    # Only on some datasets: to bracket the best learning rate, and for claims.py.
    ("full_fine_tune", {"lr": 3e-3, **NO_BLEND}),
    *(("partial_fine_tune", {"frozen_stages": k}) for k in (1, 2, 3, 4, 5)),
    *(("layer_svm", {"depth": -1, "views": views}) for views in (1, 6)),
    ("norm_tune", {}),
    ("first_stages", {}),
    ("autoencoder_probe", {}),
)
SUITE = range(10)
"""Entries of the grid that are run on all datasets."""
SIZES = (5, 20, 100, 500)
MAX_TEST, VAL_SHARE = 600, 0.2
REFERENCE_SET = "imagenet_samples"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases and run the fits that have no row yet."""
    args = _arguments(argv)
    keep_freed_memory()
    names = args.sets or sorted(
        p.name for p in args.data_root.iterdir() if p.is_dir() and p.name != REFERENCE_SET
    )
    backbone = load_backbone(args.backbone, input_px=args.input_px)
    whole = functools.cache(lambda name: load_pinned(args.data_root / name))
    cases = [
        Case(name, n, seed, args.input_px, args.backbone)
        for seed in args.seeds
        for n in args.n_per_class
        for name in names
        if adds_images(whole(name), n)
    ]

    @functools.cache
    def dataset_of(case: Case) -> Dataset:
        return subsample(whole(case.dataset), case.n_per_class, case.seed)

    if not args.no_evidence:
        measure_all(cases, dataset_of, backbone, args)
    for strategy, given in [GRID[i] for i in args.grid]:
        for case in _missing(args.out, cases, strategy, given):
            row = fit(dataset_of(case), backbone, case, strategy, given)
            append_row(args.out, {**row, "seconds": None} if args.untimed else row)
            print(*case, strategy, given, row["accuracy"], row["seconds"], flush=True)


def measure_all(cases: list[Case], dataset_of: Any, backbone: Backbone, args: Any) -> None:
    """Measure every case without a row."""
    known = read_inputs(args.evidence)
    for case in cases:
        if case in known:
            continue
        dataset = dataset_of(case).hide_test()
        with _fresh_context(case.seed) as ctx:
            start = time.monotonic()
            profile, _ = measure(dataset, backbone, ctx)
            seconds = time.monotonic() - start
            pooled = extract_features(dataset.fit_split, backbone, ctx).pooled
            labels = labels_of(dataset.fit_split)
            by_depth = [rate_features(x, labels, ctx.seed)["logme"].mid for x in pooled]
            inputs = DecisionInputs(profile, make_candidates(profile, dataset, backbone))
        row = _row_of(case) | {"advice_s": round(seconds, 2), **inputs_record(inputs)}
        row["logme_by_depth"] = [round(v, 4) for v in by_depth]
        append_row(args.evidence, row)
        print(*case, "evidence", round(seconds, 1), "s", flush=True)


def fit(
    dataset: Dataset, backbone: Backbone, case: Case, strategy: str, given: dict[str, Any]
) -> Row:
    """Fit once with an empty cache, and evaluate on test."""
    with _fresh_context(case.seed) as ctx:
        start = time.monotonic()
        chosen = get_strategy(strategy).from_hyperparameters(given)
        fitted = chosen.fit(dataset.hide_test(), backbone, ctx)
        seconds = time.monotonic() - start
    assert dataset.test is not None
    probabilities = fitted.predict_proba([p.path for p in dataset.test])
    result = evaluate_probabilities(probabilities, dataset.test, dataset.classes)
    hits = probabilities.argmax(axis=1) == labels_of(dataset.test)
    return _row_of(case) | {
        "strategy": strategy,
        "grid": given,
        "hyperparameters": dict(fitted.hyperparameters),
        "seconds": round(seconds, 2),
        "n_test": result.n,
        "accuracy": round(result.accuracy.mid, 6),
        "mean_per_class": round(result.mean_per_class, 6),
        "hits": pack_hits(hits),
    }


def subsample(dataset: Dataset, n_per_class: int, seed: int) -> Dataset:
    """Draw `n_per_class` images, a fifth of them for validation, and at most 600 test images.

    The test images are the same for all seeds and sizes.
    """
    rng = np.random.default_rng(seed)
    train: list[LabelledImage] = []
    val: list[LabelledImage] = []
    for label in range(dataset.n_classes):
        rows = [p for p in dataset.fit_split if p.label == label]
        rows = [rows[i] for i in rng.permutation(len(rows))[:n_per_class]]
        n_val = max(1, round(VAL_SHARE * len(rows))) if len(rows) > 2 else 0
        val += rows[:n_val]
        train += rows[n_val:]
    assert dataset.test is not None
    order = np.random.default_rng(0).permutation(len(dataset.test))[:MAX_TEST]
    test: Split = tuple(dataset.test[i] for i in sorted(order))
    return replace(dataset, train=tuple(train), val=tuple(val), test=test)


def adds_images(dataset: Dataset, n_per_class: int) -> bool:
    """Return whether a size draws more images of a dataset than the next smaller size."""
    below = max((size for size in SIZES if size < n_per_class), default=0)
    return int(np.bincount(labels_of(dataset.fit_split)).max()) > below


@contextlib.contextmanager
def _fresh_context(seed: int) -> Iterator[RunContext]:
    """Yield a context with an empty cache that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="suite-") as folder:
        yield make_context(cache_dir=Path(folder), seed=seed)


def _row_of(case: Case) -> Row:
    """Return a row with a case, the commit and the date."""
    row = {"set": case.dataset, "n_per_class": case.n_per_class, "seed": case.seed}
    row |= {"input_px": case.input_px, "backbone": case.backbone}
    return row | {"commit": _commit(), "date": time.strftime("%Y-%m-%d", time.gmtime())}


def _commit() -> str:
    """Return the short hash of the checked-out commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parent)
    return found.stdout.strip()


def _missing(out: Path, cases: list[Case], strategy: str, given: dict[str, Any]) -> Iterator[Case]:
    """Yield the cases without a row for an entry of the grid.

    The file is read again before every case, because other processes may append to it.
    """
    for case in cases:
        done = {
            (case_of(r), r["strategy"], json.dumps(r["grid"], sort_keys=True))
            for r in read_rows(out)
        }
        if (case, strategy, json.dumps(given, sort_keys=True)) not in done:
            yield case


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--sets", nargs="*", help="datasets; default: all in the data root")
    parser.add_argument(
        "--grid", nargs="*", type=int, default=SUITE, help="numbers of grid entries, from 0"
    )
    parser.add_argument("--no-evidence", action="store_true", help="do not measure profiles")
    parser.add_argument(
        "--untimed", action="store_true", help="record no seconds: other jobs run on this core"
    )
    parser.add_argument("--n-per-class", nargs="*", type=int, default=SIZES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
