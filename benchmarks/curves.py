"""Record validation curves of training runs, and evaluate pruners and model soups on them.

`record` runs twelve full fine-tunes per dataset at 64 px with half the default steps (the advised
hyperparameters, variations of them, then draws of TPE), without pruning, and appends one row per
run; runs of a dataset that has rows are skipped. `soups` averages the weights of the runs.
`pruners` replays the recorded curves and needs no images. By default all three are done.

Run:      python benchmarks/curves.py [record|soups|pruners ...] --data-root DIR --weights DIR
Cost:     `record` 40 minutes for six datasets on half a core; `pruners` seconds.
Expected: ASHA with patience almost never stops the best run; soups rarely gain
          (docs/benchmarks/runs.md).
"""

import argparse
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from pinned_split import load_pinned
from rows import append_row, read_rows

from advisor.tune.interventions import initial_trials
from advisor.tune.run_dir.soup_candidates import MOST
from advisor.tune.trials.pruning import PatientHalving
from advisor.tune.trials.sampler import SeededTPE
from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, make_context
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import load_backbone
from strategies.models.classifier import ImageClassifier
from strategies.training.weight_averaging import average_weights

HERE = Path(__file__).resolve().parent
SETS = {
    "sign_digits": 20,
    "flowers5": 30,
    "neu_surface": 12,
    "trash6": 25,
    "gtsrb": 5,
    "pacs_sketch": 20,
    "dtd10": 15,
    "hymenoptera": 50,
}
"""Train images per class of each dataset; a quarter as many are used for validation."""
N_TRIALS, MOST_TEST, PX, SEED = 12, 400, 64, 0
POOLS = (6, 4)
"""Soups are also made of the first 6 and the first 4 trials."""
FEWER_STEPS = 2
"""The drawn number of steps is divided by this."""
START = {
    "head_lr_factor": 1.0,
    "batch_norm": "frozen",
    "label_smoothing": 0.0,
    "hflip": False,
    "input_px": PX,
    "steps": 75,
}
PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "none": lambda n_val: NopPruner(),
    "median of earlier trials (before)": lambda n_val: MedianPruner(2, 3),
    "ASHA": lambda n_val: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "ASHA, from round 3": lambda n_val: SuccessiveHalvingPruner(
        min_resource=3, reduction_factor=2
    ),
    "Hyperband, 1 to 6, halves": lambda n_val: HyperbandPruner(1, 6, 2),
    "Hyperband, 1 to 6, thirds": lambda n_val: HyperbandPruner(1, 6, 3),
    "ASHA, patient (now)": PatientHalving,
}
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="*", default=["record", "soups", "pruners"], help="parts; default: all"
    )
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=HERE / "curves.jsonl")
    parser.add_argument("--weights", type=Path, help="folder for the fitted classifiers")
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--orders", type=int, default=20, help="random trial orders for pruners")
    args = parser.parse_args(argv)
    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in args.sets if {"record", "soups"} & set(args.what) else ():
        dataset = draw(load_pinned(args.data_root / name), SETS[name])
        ctx = make_context(cache_dir=args.cache_dir, seed=SEED, workers=1)
        if "record" in args.what and not rows_of(args.out)[name]:
            record(name, dataset, ctx, args)
        if "soups" in args.what:
            soups(name, dataset, ctx, rows_of(args.out)[name], args.weights)
    if "pruners" in args.what:
        print(pruner_table(rows_of(args.out), args.orders))


def draw(dataset: Dataset, n: int) -> Dataset:
    """Draw `n` train images per class, `n` / 4 for validation, and `MOST_TEST` test images."""
    rng = np.random.default_rng(SEED)
    train, val = [], []
    for label in range(dataset.n_classes):
        rows = [p for p in dataset.fit_split if p.label == label]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        train += rows[:n]
        val += rows[n : n + max(1, n // 4)]
    assert dataset.test is not None
    order = np.random.default_rng(0).permutation(len(dataset.test))[:MOST_TEST]
    test = tuple(dataset.test[i] for i in sorted(order))
    return replace(dataset, train=tuple(train), val=tuple(val), test=test)


def record(name: str, dataset: Dataset, ctx: RunContext, args: argparse.Namespace) -> None:
    """Run all trials of a dataset without pruning; save classifiers and append rows."""
    hidden, backbone = dataset.hide_test(), load_backbone(input_px=PX)
    study = optuna.create_study(direction="maximize", sampler=SeededTPE(SEED))
    entries: list[Row] = [START]
    for number in range(N_TRIALS):
        if number < len(entries):
            study.enqueue_trial(entries[number])
        trial = study.ask(dict(FullFineTune.search_space(hidden, backbone)))
        given = {**trial.params, "steps": trial.params["steps"] // FEWER_STEPS}
        if number == 0:
            given |= {"lr": None, "blend": None}  # the defaults depend on the images
        drawn = FullFineTune.from_hyperparameters(given)
        curve: list[float | None] = []

        def on_epoch(_: int, accuracy: float | None, curve: list[float | None] = curve) -> None:
            curve.append(accuracy)

        fitted = drawn.fit(hidden, backbone, replace(ctx, reporter=Reporter(on_epoch=on_epoch)))
        if number == 0:
            used = {k: fitted.hyperparameters[k] for k in ("lr", "blend")}
            entries = initial_trials({**START, **used}, trial.distributions)
        fitted.save(args.weights / f"{name}-{number}")
        val, test = (float(hits(fitted, s).mean()) for s in (dataset.val, dataset.test or ()))
        study.tell(trial, val)
        row = {"set": name, "trial": number, "n_val": len(dataset.val), "curve": curve}
        result = {"val": val, "test": test, "hyperparameters": dict(fitted.hyperparameters)}
        append_row(args.out, row | result)


def hits(classifier: ImageClassifier, split: Split) -> Any:
    """Return which images of a split are classified correctly, (n,)."""
    probabilities = classifier.predict_proba([p.path for p in split], n_workers=1)
    return probabilities.argmax(axis=1) == labels_of(split)


def soups(
    name: str, dataset: Dataset, ctx: RunContext, rows: Sequence[Row], weights: Path
) -> None:
    """Print accuracies of greedy soups: of all trials, the first 6 and 4, and four draws of 6."""
    draws = [np.random.default_rng(s).permutation(N_TRIALS)[: POOLS[0]] for s in range(4)]
    for chosen in (range(N_TRIALS), *map(range, POOLS), *draws):
        pool = sorted((rows[i] for i in sorted(chosen)), key=lambda r: (-r["val"], r["trial"]))
        soup, best, accuracy = [pool[0]["trial"]], None, pool[0]["val"]
        for row in pool[1:MOST]:
            members = [
                ImageClassifier.load(weights / f"{name}-{n}") for n in (*soup, row["trial"])
            ]
            candidate = average_weights(members, dataset.hide_test(), ctx)
            val = float(hits(candidate, dataset.val).mean())
            if val >= accuracy:
                soup, best, accuracy = [*soup, row["trial"]], candidate, val
        kept = best is not None and accuracy - pool[0]["val"] > 1.5 / len(dataset.val)
        test = hits(best, dataset.test or ()).mean() if best else pool[0]["test"]
        print(
            f"{name}, {len(chosen)} trials: {soup}, "
            f"validation {pool[0]['val']:.3f} -> {accuracy:.3f}, "
            f"test {pool[0]['test']:.3f} -> {test:.3f}, {'kept' if kept else 'not kept'}"
        )


def pruner_table(by_set: dict[str, list[Row]], n_orders: int = 20) -> str:
    """Return savings and losses of every pruner for searches of 4, 6 and 12 trials."""
    lines = [
        "| pruner | rounds saved, % | best trial pruned, % | change of test accuracy, points |"
    ]
    lines += ["|---|---|---|---|"]
    for name in PRUNERS:
        cells = [replay(by_set, name, n, n_orders) for n in (4, 6, 12)]
        columns = [
            ", ".join(f"{100 * c['saved']:.0f}" for c in cells),
            ", ".join(f"{100 * c['stopped_best']:.1f}" for c in cells),
            ", ".join(f"{100 * c['test']:+.1f} ± {100 * c['error']:.1f}" for c in cells),
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def replay(
    by_set: dict[str, list[Row]], pruner: str, n_trials: int, n_orders: int
) -> dict[str, float]:
    """Replay searches with a pruner over random orders of the trials.

    Returns
    -------
    dict
        ``saved``: share of rounds saved; ``stopped_best``: share of searches that pruned the best
        trial on validation; ``test``: test accuracy of the trial found minus that of the best one,
        mean over datasets; ``error``: its standard error.
    """
    saved, stopped, test = [], [], defaultdict(list)
    for name, rows in by_set.items():
        for order in range(n_orders):
            chosen = np.random.default_rng(order).permutation(len(rows))[:n_trials]
            trials = [rows[i] for i in chosen]
            n_rounds, ended = search(trials, PRUNERS[pruner](rows[0]["n_val"]), order)
            best = max(trials, key=lambda r: r["val"])
            found = max(ended, key=lambda r: r["val"])
            saved.append(1 - n_rounds / sum(len(r["curve"]) for r in trials))
            stopped.append(found["val"] < best["val"])
            test[name].append(found["test"] - best["test"])
    means = [np.mean(v) for v in test.values()]
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    found = {"saved": saved, "stopped_best": stopped, "test": means}
    return {k: float(np.mean(v)) for k, v in found.items()} | {"error": float(error)}


def search(trials: Sequence[Row], pruner: BasePruner, order: int) -> tuple[int, list[Row]]:
    """Replay one search; return the number of rounds trained, and the trials not pruned."""
    n_rounds, ended = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=f"order {order}", direction="maximize", pruner=pruner
        )
    for row in trials:
        trial = study.ask()
        state = optuna.trial.TrialState.COMPLETE
        for step, accuracy in enumerate(row["curve"], start=1):
            trial.report(accuracy, step)
            n_rounds += 1
            if trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        else:
            ended.append(row)
        study.tell(trial, row["val"] if row in ended else None, state)
    return n_rounds, ended


def rows_of(path: Path) -> dict[str, list[Row]]:
    """Return the rows of a file by dataset."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in read_rows(path):
        found[row["set"]].append(row)
    return found


if __name__ == "__main__":
    main()
