"""Compare ``tl-auto run`` with simpler searches, fastai and AutoGluon in equal wall-clock time.

A cell is a dataset, a number of images per class (train and validation together, a fifth of them
for validation) and a seed. In every cell each method gets `--seconds` from the start of its
process to its test accuracy, the same backbone, input size and split, and an empty cache:

run       ``tl-auto run --no-control``, with its advice, report and reserves
advice    the first recommendation of ``tl-advise``, fitted once
random    random search over strategies (all but from scratch) and their hyperparameters
optuna    Optuna's TPE and median pruner over full fine-tuning only
fastai    ``fine_tune`` of fastai for as many epochs as possible (`peer_training.py`), in an
          environment of its own: ``pip install torch torchvision timm``, then ``pip install
          fastai``. It gets `--seconds` of training; imports and evaluation are not counted.
autogluon AutoGluon's ``MultiModalPredictor`` with its defaults, counted as fastai, in an
          environment of its own: as for fastai, then ``pip install autogluon.multimodal`` and
          torch again

`random` and `optuna` choose the best trial on validation; a linear head is then refitted with the
validation images, as ``tl-auto run`` does. Every fit has one JSON line, appended when it is done;
fits that have a line are skipped. At the end mean accuracies are printed, and differences to
`run`, paired by cell, with 95% intervals.

Run:      python benchmarks/tuning.py --seconds 60 --fastai PEERS/bin/python \
              --autogluon AG/bin/python
Cost:     70 minutes on one core with 60 s; `--sets` without names prints the summary in seconds.
Expected: `run` is at least as good as its advice, and better than the others
          (docs/benchmarks/runs.md).
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from peers import run_training
from pinned_split import load_pinned
from rows import append_row, read_rows
from run_suite import subsample
from scipy.stats import t as student

from advisor.advise import Prepared, advise_on, prepare
from advisor.tune.time_budget import TimeBudget
from advisor.types.options import Options
from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TrainingDiverged
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import ImageClassifier, evaluate
from strategies.registry import STRATEGIES, get_strategy

STARTED_S = time.monotonic()
EVALUATION_S = 0.05
"""Estimate of the seconds to classify one image, before any was measured."""
SETS = ("hymenoptera", "flowers5", "sign_digits", "neu_surface", "dtd10")
PEERS = ("fastai", "autogluon")
"""Methods that run in environments of their own."""
WHO = ("run", "advice", "random", "optuna", *PEERS)
SEARCHED = tuple(name for name in STRATEGIES if name != "from_scratch")
AUTO = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the fits that have no line yet, and print the summary."""
    args = _arguments(argv)
    keep_freed_memory()
    if args.one:
        print(json.dumps(run_in_process(json.loads(args.one.read_text()))))
        return
    backbone = load_backbone(input_px=args.input_px)
    rows = read_rows(args.out)
    for seed in args.seeds:
        for n in args.n_per_class:
            for name in args.sets:
                cell = {"set": name, "n_per_class": n, "seed": seed, "limit_s": args.seconds}
                cell["input_px"] = args.input_px
                known = {r["who"] for r in rows if cell.items() <= r.items()}
                todo = [who for who in args.who if who not in known]
                if not todo:
                    continue
                dataset = subsample(load_pinned(args.data_root / name), n, seed)
                for who in todo:
                    python = getattr(args, who) if who in PEERS else None
                    row = cell | {"who": who} | run_method(who, dataset, backbone, cell, python)
                    rows.append(row)
                    append_row(args.out, row)
                    print(json.dumps(row), flush=True)
    print_summary([r for r in rows if r["limit_s"] == args.seconds])


def run_method(
    who: str, dataset: Dataset, backbone: Backbone, cell: dict[str, Any], python: Path | None
) -> dict[str, Any]:
    """Run one method on a cell, and return its test accuracy and its seconds."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tuning-") as name:
        folder = Path(name)
        if python is not None:
            row = run_training(who, dataset, backbone, cell["seed"], cell["limit_s"], python)
        else:
            manifest = write_manifest(dataset, folder / "images.csv")
            if who == "run":
                row = run_auto(manifest, cell, folder)
            else:
                row = start_process(who, manifest, cell, folder)
    sizes = {"n_train": len(dataset.train), "n_val": len(dataset.val)}
    return row | sizes | {"took_s": round(time.monotonic() - begun, 1)}


def write_manifest(dataset: Dataset, path: Path) -> Path:
    """Write a dataset and its split as a CSV manifest."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split in ("train", "val", "test"):
            for p in getattr(dataset, split):
                writer.writerow([p.path, dataset.classes[p.label], split])
    return path


def run_auto(manifest: Path, cell: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run ``tl-auto run`` and read its outcome."""
    values = {"--out": folder / "run", "--time": f"{cell['limit_s']}s", "--seed": cell["seed"]}
    values |= {"--input-px": cell["input_px"], "--cache-dir": folder / "cache"}
    options = [str(v) for pair in values.items() for v in pair]
    call([*AUTO, "run", str(manifest), "--no-control", "--quiet", *options])
    outcome = json.loads((folder / "run" / "outcome.json").read_text())
    return {
        "accuracy": outcome["test"]["accuracy"]["mid"],
        "n_test": outcome["test"]["n"],
        "best": outcome["best"]["strategy"],
        "trials": len(read_rows(folder / "run" / "trials.jsonl")),
    }


def start_process(who: str, manifest: Path, cell: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a method of this file in a process of its own, so that its imports are counted."""
    spec = cell | {"who": who, "manifest": str(manifest), "cache": str(folder / "cache")}
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, str(Path(__file__)), "--one", str(folder / "spec.json")]
    found: dict[str, Any] = json.loads(call(command).splitlines()[-1])
    return found


def run_in_process(spec: dict[str, Any]) -> dict[str, Any]:
    """Find a classifier within the time limit, and evaluate it on test."""
    options = Options(input_px=spec["input_px"], seed=spec["seed"], cache_dir=Path(spec["cache"]))
    prepared = prepare(Path(spec["manifest"]), options, STARTED_S + spec["limit_s"])
    dataset, test = prepared.dataset.hide_test(), prepared.dataset.test or ()
    by_px = {prepared.backbone.input_px: EVALUATION_S}
    limit_s = spec["limit_s"]
    budget = TimeBudget(STARTED_S + limit_s, limit_s, len(test), len(dataset.val), by_px)
    if spec["who"] == "advice":
        best, n_trials = fit_advice(prepared, dataset, budget), 1
    else:
        best, n_trials = search(spec["who"], prepared, dataset, budget)
    row = {"accuracy": None, "n_test": len(test), "best": None, "trials": n_trials}
    if best is None:
        return row
    classifier = with_val(best, dataset, prepared.backbone, prepared.ctx, budget)
    accuracy = evaluate(classifier, test).accuracy.mid
    return row | {"accuracy": accuracy, "best": classifier.strategy}


def fit_advice(prepared: Prepared, dataset: Dataset, budget: TimeBudget) -> ImageClassifier | None:
    """Fit the first recommendation of the advice; None if there was not enough time."""
    try:
        advised = advise_on(prepared).recommendations[0]
        strategy = get_strategy(advised.strategy).from_hyperparameters(advised.hyperparameters)
        ctx = prepared.ctx.with_deadline(budget.fit_ends_s())
        return strategy.fit(dataset, prepared.backbone, ctx)
    except (OutOfTime, TrainingDiverged):
        return None


def search(
    who: str, prepared: Prepared, dataset: Dataset, budget: TimeBudget
) -> tuple[ImageClassifier | None, int]:
    """Run trials until the time is over; return the best on validation, and their number."""
    ctx, backbone = prepared.ctx, prepared.backbone
    searched = [s for s in SEARCHED if get_strategy(s)().inapplicable(dataset, backbone) is None]
    names = searched if who == "random" else ["full_fine_tune"]
    studies = {name: _study(who, ctx.seed) for name in names}
    rng = np.random.default_rng(ctx.seed)
    best: tuple[float, ImageClassifier] | None = None
    n_trials = 0
    while budget.left_s() > 0:
        name = str(rng.choice(names))
        found = fit_trial(studies[name], name, dataset, backbone, ctx, budget)
        n_trials += 1
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    return (best[1] if best else None), n_trials


def fit_trial(
    study: optuna.Study,
    name: str,
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    budget: TimeBudget,
) -> tuple[float, ImageClassifier] | None:
    """Run one trial; return validation accuracy and classifier, None if it did not complete."""
    kind = get_strategy(name)
    trial = study.ask(dict(kind.search_space(dataset, backbone)))

    def on_epoch(epoch: int, val_accuracy: float | None) -> None:
        if val_accuracy is not None:
            trial.report(val_accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        strategy = kind.from_hyperparameters(trial.params)
        reporter = replace(ctx.reporter, on_epoch=on_epoch)
        own = replace(ctx, deadline_s=budget.fit_ends_s(), reporter=reporter)
        classifier = strategy.fit(dataset, backbone, own)
    except (OutOfTime, TrainingDiverged):
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return None
    begun = time.monotonic()
    accuracy = evaluate(classifier, dataset.val).accuracy.mid
    budget.observe_prediction(
        len(dataset.val), time.monotonic() - begun, classifier.backbone.input_px
    )
    study.tell(trial, accuracy)
    return accuracy, classifier


def with_val(
    best: ImageClassifier,
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    budget: TimeBudget,
) -> ImageClassifier:
    """Refit a linear head with validation images if there is time; else return it unchanged."""
    strategy = get_strategy(best.strategy)
    if strategy.trains_network:
        return best
    own = ctx.with_deadline(budget.search_ends_s())
    try:
        everything = dataset.with_val_in_train()
        refitted = strategy.from_hyperparameters(best.hyperparameters)
        return refitted.fit(everything, backbone, own)
    except OutOfTime:
        return best


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Print mean accuracies of all methods, and their differences to `run`, paired by cell."""
    by_cell: dict[tuple[Any, ...], dict[str, float]] = {}
    for r in rows:
        cell = (r["set"], r["n_per_class"], r["seed"], r["input_px"])
        by_cell.setdefault(cell, {})[r["who"]] = r["accuracy"] or 0.0  # 0 without a classifier
    for who in WHO:
        pairs = [(c["run"], c[who]) for c in by_cell.values() if "run" in c and who in c]
        if not pairs:
            continue
        ours, theirs = np.array(pairs).T * 100
        gap = ours - theirs
        line = f"{who:<8} {theirs.mean():5.1f}% in {len(gap)} cells"
        if who != "run" and len(gap) > 1:
            half = student.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
            low, high = gap.mean() - half, gap.mean() + half
            line += f"; run is {gap.mean():+.1f} points better [{low:+.1f}, {high:+.1f}]"
        print(line)


def call(command: list[str]) -> str:
    """Return the standard output of a command; exit with its error output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr}"
        )
    return done.stdout


def _study(who: str, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if who == "random":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
        pruner = optuna.pruners.MedianPruner()
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/tuning.jsonl"))
    for who in PEERS:
        parser.add_argument(f"--{who}", type=Path, default=Path(f"{who}/bin/python"))
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--who", nargs="*", choices=WHO, default=WHO)
    parser.add_argument("--n-per-class", nargs="*", type=int, default=[20, 100])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
