"""The suite: strategies on data sets of several sizes, and the evidence that advice would have.

    python benchmarks/run_suite.py --data-root FOLDER --out benchmarks/results.jsonl

One row a fit, appended as it is done; what stands in the file already is not run again. Any folder
of class folders (or train/ test/) below the data root is a data set.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from advisor.profile import measure
from advisor.types import Profile
from strategies.core.backbone import Backbone, load_backbone
from strategies.core.classifier import evaluate
from strategies.core.run import RunContext, make_context
from strategies.core.task import ImageTask, Split, load_task
from strategies.registry import get_strategy

GRID: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear_probe", {}),
    ("layer_svm", {}),
    ("full_fine_tune", {"lr": 1e-4}),
    ("full_fine_tune", {"lr": 1e-3}),
    ("partial_fine_tune", {"lr": 1e-3}),
    ("from_scratch", {}),
)
MAX_TEST, VAL_SHARE = 600, 0.2


def main() -> None:
    """Run what is missing."""
    args = _arguments()
    names = args.sets or sorted(p.name for p in args.data_root.iterdir() if p.is_dir())
    done = _done(args.out)
    backbone = load_backbone(input_px=args.input_px)
    for seed in args.seeds:
        ctx = make_context(cache_dir=args.cache_dir, seed=seed)
        for n_per_class in args.n_per_class:
            for name in names:
                todo = [
                    (strategy, grid)
                    for strategy, grid in GRID
                    if (name, n_per_class, seed, strategy, json.dumps(grid)) not in done
                    and (not args.strategies or strategy in args.strategies)
                ]
                if not todo:
                    continue
                task = subsample(load_task(args.data_root / name), n_per_class, seed)
                start = time.monotonic()
                profile = measure(task.hide_test(), backbone, ctx)
                case = {"set": name, "n_per_class": n_per_class, "seed": seed}
                case |= {"input_px": args.input_px, **evidence(profile)}
                case["advice_s"] = round(time.monotonic() - start, 2)
                for strategy, grid in todo:
                    row = case | {"strategy": strategy, "grid": grid}
                    row |= run(task, backbone, ctx, strategy, grid)
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(name, n_per_class, seed, strategy, grid, row["accuracy"], flush=True)


def evidence(profile: Profile) -> dict[str, Any]:
    """Return what advice would rest on."""
    score = profile.similarity.score if profile.similarity else None
    svm = profile.layer_svm
    return {
        "similarity": score.mid if score else None,
        "similarity_interval": asdict(score) if score else None,
        "probe_cv": asdict(profile.linear_probe.accuracy),
        "svm_cv": asdict(svm.accuracy),
        "svm_depth": svm.depth,
        "ms_per_image": round(profile.ms_per_image, 3),
        "image_passes": dict(profile.image_passes),
    }


def run(
    task: ImageTask, backbone: Backbone, ctx: RunContext, strategy: str, grid: dict[str, Any]
) -> dict[str, Any]:
    """Fit once and judge on test."""
    start = time.monotonic()
    fitted = get_strategy(strategy)(**grid).fit(task.hide_test(), backbone, ctx)
    seconds = time.monotonic() - start
    assert task.test is not None
    result = evaluate(fitted, task.test)
    return {
        "hyperparameters": dict(fitted.hyperparameters),
        "seconds": round(seconds, 2),
        "n_test": result.n,
        "accuracy": result.accuracy.mid,
        "mean_per_class": result.mean_per_class,
    }


def subsample(task: ImageTask, n_per_class: int, seed: int) -> ImageTask:
    """Keep `n_per_class` pictures of train and val together, and a fixed set of test pictures."""
    rng = np.random.default_rng(seed)
    train: list = []
    val: list = []
    for label in range(task.n_classes):
        rows = [p for p in task.fit_split if p.label == label]
        rows = [rows[i] for i in rng.permutation(len(rows))[:n_per_class]]
        n_val = max(1, round(VAL_SHARE * len(rows))) if len(rows) > 2 else 0
        val += rows[:n_val]
        train += rows[n_val:]
    assert task.test is not None
    order = np.random.default_rng(0).permutation(len(task.test))[:MAX_TEST]
    test: Split = tuple(task.test[i] for i in sorted(order))
    return replace(task, train=tuple(train), val=tuple(val), test=test)


def _done(out: Path) -> set[tuple[str, int, int, str, str]]:
    if not out.exists():
        return set()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {
        (r["set"], r["n_per_class"], r["seed"], r["strategy"], json.dumps(r["grid"])) for r in rows
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--sets", nargs="*", help="default: every folder of the data root")
    parser.add_argument("--strategies", nargs="*")
    parser.add_argument("--n-per-class", nargs="*", type=int, default=[5, 20, 100])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--input-px", type=int, default=96)
    return parser.parse_args()


if __name__ == "__main__":
    main()
