"""Compare our strategies with scikit-learn, timm and fastai on the same images, backbone and time.

A cell is a dataset, a number of images per class and a seed. Every method is fitted to all images
of a cell with its defaults: nothing is held out for selection. timm and fastai get the seconds
that our `full_fine_tune` took in the same cell, so that strategy is run first. All are evaluated
on the same test images, filled up to 600 with train and validation images that were not drawn.
Every fit has one row, appended when it is done; fits that have a row are skipped.

Run:      python benchmarks/peers.py --python PEERS/bin/python
          python benchmarks/peers.py --table
          PEERS is an environment of its own: ``pip install torch torchvision timm``, then
          ``pip install fastai``.
Cost:     45 minutes per seed on one core; `--table` takes seconds.
Expected: docs/benchmarks/probes.md.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fine_tune_defaults import fill_test
from pinned_split import load_pinned
from rows import append_row, read_rows
from run_suite import subsample
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, make_context
from strategies.core.folds import MAX_FOLDS
from strategies.data.dataset import Dataset, labels_of
from strategies.models.backbone import Backbone, load_backbone, timm_network
from strategies.models.classifier import evaluate
from strategies.models.features import extract_features
from strategies.models.formats.timm_format import save_for_timm
from strategies.registry import STRATEGIES, get_strategy

SETS = ("hymenoptera", "flowers5", "sign_digits", "neu_surface", "dtd10")
SKLEARN = ("sklearn_logistic", "sklearn_svc")
TRAINED = ("timm_1e-4", "timm_1e-3", "fastai")
TRAINING = Path(__file__).with_name("peer_training.py")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the fits that have no row yet, or print the table of existing rows."""
    args = _arguments(argv)
    keep_freed_memory()
    if args.table:
        print(table(read_rows(args.out)))
        return
    backbone = load_backbone(input_px=args.input_px)
    for seed in args.seeds:
        ctx = make_context(cache_dir=args.cache_dir, seed=seed)
        for n in args.n_per_class:
            for name in args.sets:
                rows = [r for r in read_rows(args.out) if _cell(r) == (name, n, seed)]
                todo = [who for who in args.who if who not in {r["who"] for r in rows}]
                if not todo:
                    continue
                whole = load_pinned(args.data_root / name)
                dataset = fill_test(whole, subsample(whole, n, seed), seed)
                for who in todo:
                    row = {"set": name, "n_per_class": n, "seed": seed, "who": who}
                    row |= {"input_px": args.input_px} | run(
                        who, dataset, backbone, ctx, rows, args
                    )
                    rows.append(row)
                    append_row(args.out, row)
                    print(json.dumps(row), flush=True)


def run(
    who: str,
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    rows: list[dict[str, Any]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Fit once with one method, and evaluate on test."""
    if who in SKLEARN:
        return run_sklearn(who, dataset, backbone, ctx)
    if who in TRAINED:
        given = next((r["seconds"] for r in rows if r["who"] == "full_fine_tune"), None)
        if given is None:
            raise SystemExit(
                f"{who} gets the seconds of full_fine_tune in the same cell, which has no row: "
                "run --who full_fine_tune first."
            )
        return run_training(who, dataset, backbone, ctx.seed, given, args.python)
    chosen = get_strategy(who)
    given_steps = {"steps": args.steps} if args.steps and chosen.trains_network else {}
    strategy = chosen.from_hyperparameters(given_steps)
    fitted_on = dataset.hide_test().with_val_in_train()
    if not strategy.trains_network:
        # As for scikit-learn, the seconds are those of the head alone.
        extract_features(fitted_on.train, backbone, ctx)
    start = time.monotonic()
    fitted = strategy.fit(fitted_on, backbone, ctx)
    seconds = time.monotonic() - start
    assert dataset.test is not None
    result = evaluate(fitted, dataset.test)
    return {
        "accuracy": result.accuracy.mid,
        "n_test": result.n,
        "seconds": round(seconds, 2),
        "hyperparameters": dict(fitted.hyperparameters),
    }


def run_sklearn(who: str, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> dict[str, Any]:
    """Fit a linear classifier of scikit-learn to penultimate features, cross-validating `C`."""
    assert dataset.test is not None
    depth = [backbone.n_depths]
    x, y = (
        extract_features(dataset.fit_split, backbone, ctx).at(depth),
        labels_of(dataset.fit_split),
    )
    folds = StratifiedKFold(min(MAX_FOLDS, np.bincount(y).min()), shuffle=True, random_state=0)
    strengths = np.logspace(-5, 2, 10)
    head = (
        LogisticRegressionCV(
            Cs=strengths,
            l1_ratios=(0.0,),
            cv=folds,
            max_iter=1000,
            scoring="accuracy",
            use_legacy_attributes=False,
        )
        if who == "sklearn_logistic"
        else GridSearchCV(LinearSVC(max_iter=5000), {"C": strengths}, cv=folds)
    )
    start = time.monotonic()
    model = make_pipeline(StandardScaler(), head).fit(x, y)
    seconds = time.monotonic() - start
    found = model.predict(extract_features(dataset.test, backbone, ctx).at(depth))
    right = found == labels_of(dataset.test)
    chosen = head.C_ if who == "sklearn_logistic" else head.best_params_["C"]
    return {
        "accuracy": float(right.mean()),
        "n_test": len(right),
        "seconds": round(seconds, 2),
        "hyperparameters": {"C": float(np.ravel(chosen)[0])},
    }


def run_training(
    who: str, dataset: Dataset, backbone: Backbone, seed: int, seconds: float, python: Path
) -> dict[str, Any]:
    """Fine-tune the same weights with another library, in a process of its own."""
    assert dataset.test is not None
    with TemporaryDirectory() as folder:
        names = [str(i) for i in range(1000)]
        net = timm_network(backbone)
        net.load_state_dict(backbone.build().state_dict())
        save_for_timm(net, backbone, names, Path(folder) / "weights")
        spec = {
            "how": who.partition("_")[0],
            "lr": float(who.partition("_")[2] or 0),
            "weights": str(Path(folder) / "weights"),
            "train": [(str(p.path), p.label) for p in dataset.fit_split],
            "val": [(str(p.path), p.label) for p in dataset.val],
            "test": [(str(p.path), p.label) for p in dataset.test],
            "n_classes": dataset.n_classes,
            "px": backbone.input_px,
            "seconds": seconds,
            "seed": seed,
        }
        (Path(folder) / "spec.json").write_text(json.dumps(spec))
        done = subprocess.run(
            [python, TRAINING, Path(folder) / "spec.json"], capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(f"{who} failed with exit code {done.returncode}:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean accuracies over seeds, and each strategy's gain over the best peer, as Markdown.

    Linear heads are compared with scikit-learn's, fine-tunes with all peers. The best peer is
    chosen per cell.
    """
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        cell = found.setdefault((row["set"], row["n_per_class"]), {})
        cell.setdefault(row["who"], []).append(100 * row["accuracy"])
    peers = (*SKLEARN, *TRAINED)
    names = [w for w in (*peers, *STRATEGIES) if all(w in cell for cell in found.values())]
    lines = [f"| dataset, images per class (seeds) | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    gains: dict[str, list[float]] = {name: [] for name in names if name in STRATEGIES}
    for (name, n), cell in found.items():
        means = {who: float(np.mean(cell[who])) for who in names}
        best = {w: max(means[p] for p in _peers_of(w) if p in means) for w in gains}
        shown = [f"{means[w]:.1f}" for w in names]
        lines.append(f"| {name}, {n} ({len(cell[names[0]])}) | {' | '.join(shown)} |")
        for who in gains:
            gains[who].append(means[who] - best[who])
    lines += ["", "| strategy | mean gain over the best peer, points | lowest |", "|---|---|---|"]
    lines += [f"| {w} | {np.mean(v):+.1f} | {min(v):+.1f} |" for w, v in gains.items()]
    return "\n".join(lines)


def _peers_of(strategy: str) -> tuple[str, ...]:
    return (*SKLEARN, *TRAINED) if STRATEGIES[strategy].trains_network else SKLEARN


def _cell(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["set"], row["n_per_class"], row["seed"]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/peers.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument(
        "--python", type=Path, default=Path("peers/bin/python"), help="with timm and fastai"
    )
    parser.add_argument("--sets", nargs="*", default=SETS)
    order = sorted(STRATEGIES, key=lambda name: STRATEGIES[name].trains_network)
    parser.add_argument("--who", nargs="*", default=[*SKLEARN, *order, *TRAINED])
    parser.add_argument("--n-per-class", nargs="*", type=int, default=[10, 100])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--steps", type=int, help="of our fine-tunes; default: their defaults")
    parser.add_argument("--table", action="store_true", help="print the table of existing rows")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
