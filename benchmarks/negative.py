"""Test the findings of negative transfer, and interventions, with a deliberately harmful backbone.

``harm`` makes the harmful backbone: it trains the embedded one on random labels of spectrograms at
a large learning rate, a dissimilar dataset with nothing to learn. ``warn`` asks for advice with it
on small draws of three datasets near ImageNet; ``near`` does the same with the embedded backbone,
where no finding is expected. ``interventions`` fits the interventions on the harmful backbone, and
the embedded one, and evaluates them on test. ``table`` prints all results. Rows are appended to
``negative.jsonl``; existing ones are not measured again.

Run:      python benchmarks/negative.py harm --backbone-folder FOLDER
          python benchmarks/negative.py warn --backbone-folder FOLDER           # 3 x 10 draws
          python benchmarks/negative.py near                                    # 3 x 10 draws
          python benchmarks/negative.py interventions --backbone-folder FOLDER
          python benchmarks/negative.py table
Cost:     on one core: harm 5 minutes, warn and near 1 to 3 s per draw, interventions 10 to 20 s
          per fit.
Expected: negative transfer is found on all draws of warn and on none of near
          (docs/benchmarks/negative-transfer.md).
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pinned_split import load_pinned
from rows import HERE, Row, append_row, read_rows
from run_suite import subsample

from advisor.advise import Prepared, advise_on
from advisor.types.advice import Finding
from advisor.types.options import Options
from strategies.core.allocator import keep_freed_memory
from strategies.core.context import make_context
from strategies.data.dataset import Dataset, Split
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.models.classifier import ImageClassifier, evaluate, make_network
from strategies.models.formats.export import export
from strategies.registry import get_strategy
from strategies.training.recipe import Recipe
from strategies.training.trainer import train

ROWS = HERE / "negative.jsonl"
FOREIGN, N_FOREIGN = "fsdd_spec", 640
TARGETS = ("flowers5", "cats_dogs", "trash6")
NEAR = ("hymenoptera", "cats_dogs", "flowers5")
N_PER_CLASS = 40
INTERVENTIONS: dict[str, dict[str, Any]] = {
    "statistics": {"batch_norm": "reestimated"},
    "stages": {"reset_stages": 2, "blend": 1.0},
}
CODES = ("TL201", "TL202", "TL208", "TL209")
"""Findings of negative transfer."""


def harm(args: argparse.Namespace) -> None:
    """Train the embedded backbone on random labels of spectrograms, and save it."""
    dataset = load_pinned(args.data_root / FOREIGN)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(dataset.train))[:N_FOREIGN]
    labels = rng.integers(dataset.n_classes, size=len(rows))
    shuffled = tuple(
        replace(dataset.train[row], label=int(label))
        for row, label in zip(rows, labels, strict=True)
    )
    train_further(dataset, shuffled, args.backbone_folder, args)


def train_further(dataset: Dataset, images: Split, folder: Path, args: argparse.Namespace) -> None:
    """Train all weights of the embedded network on images, and save it as a timm model."""
    backbone = load_backbone(input_px=args.input_px)
    ctx = make_context(cache_dir=Path(args.cache_dir), seed=0)
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        recipe = Recipe(steps=args.steps, lr=args.lr, batch_norm="trained")
        train(network, replace(dataset, train=images, val=(), test=None), backbone, recipe, ctx)
    made = ImageClassifier(
        dataset.classes, backbone, (backbone.n_depths,), network, "full_fine_tune", {}
    )
    export(made, folder, "timm")
    print(f"{folder}: {args.steps} steps at learning rate {args.lr:g}", flush=True)


def advise_draws(args: argparse.Namespace) -> None:
    """Ask for advice on every draw that has no row yet."""
    harmful = args.part == "warn"
    name = f"local-dir:{args.backbone_folder}" if harmful else args.backbone
    backbone = load_backbone(name, input_px=args.input_px)
    for target in TARGETS if harmful else NEAR:
        whole = load_pinned(args.data_root / target)
        for seed in range(args.seeds):
            about = {"part": args.part, "set": target, "seed": seed, "n_per_class": N_PER_CLASS}
            about["backbone"] = "harmful" if harmful else name
            if any(about.items() <= row.items() for row in read_rows(args.out)):
                continue
            dataset = subsample(whole, N_PER_CLASS, seed).hide_test()
            row = about | advise_one(dataset, backbone, seed, args.cache_dir)
            append_row(args.out, row)
            print(row, flush=True)


def advise_one(dataset: Dataset, backbone: Backbone, seed: int, cache_dir: Path) -> Row:
    """Return findings and measurements of transfer on one draw."""
    options = Options(backbone=backbone.name, input_px=backbone.input_px, seed=seed)
    ctx = make_context(cache_dir=cache_dir, seed=seed)
    advice = advise_on(Prepared(dataset, backbone, (), (), options, ctx))
    profile = advice.profile
    gain, alternative = profile.transfer_gain, advice.alternative
    assert gain is not None
    return {
        "warnings": [f.code for f in advice.findings if f.code in CODES],
        "issues": [f.code for f in advice.findings if is_issue(f)],
        "names_backbone": any("backbone" in f.title for f in advice.findings if is_issue(f)),
        "probe": round(profile.linear_probe.accuracy.mid, 4),
        "over_random": [round(v, 4) for v in (gain.low, gain.mid, gain.high)],
        "alternative_lead": None if alternative is None else round(alternative.lead.mid, 4),
        "risks": {r.strategy: round(r.probability, 3) for r in advice.risks},
        "seconds": round(advice.seconds, 1),
    }


def is_issue(finding: Finding) -> bool:
    """Return whether a finding is one of negative transfer and has the severity "issue"."""
    return finding.code in CODES and finding.severity == "issue"


def fit_interventions(args: argparse.Namespace) -> None:
    """Fit plain strategies and interventions on every case, and evaluate all of them on test."""
    harmful = f"local-dir:{args.backbone_folder}"
    steps = args.fit_steps
    plan = [
        ("plain", "linear_probe", harmful, {}),
        ("plain", "full_fine_tune", harmful, {"steps": steps}),
        ("scratch", "from_scratch", harmful, {"steps": 2 * steps}),
        *(
            ("intervention", "full_fine_tune", harmful, {"steps": steps} | v)
            for v in INTERVENTIONS.values()
        ),
        ("other backbone", "linear_probe", DEFAULT_BACKBONE, {}),
        ("other backbone", "full_fine_tune", DEFAULT_BACKBONE, {"steps": steps}),
    ]
    for seed in range(args.seeds):
        for target in TARGETS:
            dataset = subsample(load_pinned(args.data_root / target), N_PER_CLASS, seed)
            for kind, strategy, name, given in plan:
                about = {"part": "interventions", "set": target, "seed": seed, "kind": kind}
                about |= {"strategy": strategy, "given": given, "input_px": args.input_px}
                if any(about.items() <= row.items() for row in read_rows(args.out)):
                    continue
                backbone = load_backbone(name, input_px=args.input_px)
                row = about | fit(dataset, backbone, strategy, given, seed, args.cache_dir)
                append_row(args.out, row)
                print(row, flush=True)


def fit(
    dataset: Dataset,
    backbone: Backbone,
    strategy: str,
    given: dict[str, Any],
    seed: int,
    cache_dir: Path,
) -> Row:
    """Fit once; evaluate on validation, by which a run chooses, and on test."""
    ctx = make_context(cache_dir=cache_dir, seed=seed)
    start = time.monotonic()
    chosen = get_strategy(strategy).from_hyperparameters(given)
    classifier = chosen.fit(dataset.hide_test(), backbone, ctx)
    seconds = time.monotonic() - start
    assert dataset.test is not None
    return {
        "val": round(evaluate(classifier, dataset.val).accuracy.mid, 4),
        "test": round(evaluate(classifier, dataset.test).accuracy.mid, 4),
        "n_test": len(dataset.test),
        "seconds": round(seconds, 1),
    }


def table(args: argparse.Namespace) -> None:
    """Print how often negative transfer was found, and test accuracies of interventions."""
    rows = read_rows(args.out)
    print("| backbone | dataset | draws | negative transfer found | backbone named as the cause |")
    print("|---|---|---|---|---|")
    advised = [r for r in rows if r["part"] != "interventions"]
    for name in dict.fromkeys(r["backbone"] for r in advised):
        mine = [r for r in advised if r["backbone"] == name]
        for target in dict.fromkeys(r["set"] for r in mine):
            own = [r for r in mine if r["set"] == target]
            warned = sum(bool(r["issues"]) for r in own)
            named = sum(r["names_backbone"] for r in own)
            print(f"| {name} | {target} | {len(own)} | {warned} | {named} |")
    print("\n| fit | cases | mean test accuracy, % | standard deviation |\n|---|---|---|---|")
    fits = [r for r in rows if r["part"] == "interventions"]
    for name, found in accuracies(fits).items():
        spread = np.std(found, ddof=1) if len(found) > 1 else float("nan")
        print(f"| {name} | {len(found)} | {100 * np.mean(found):.1f} | {100 * spread:.1f} |")


def accuracies(rows: list[Row]) -> dict[str, list[float]]:
    """Return the test accuracies of all fits by kind, in the order of cases.

    The last entries are choices among the fits of a case: the better of plain and scratch in
    hindsight, and the best on validation, which a run would keep.
    """
    found: dict[str, list[float]] = {}
    cases: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["set"], row["seed"], row["input_px"]), []).append(row)
    whole = max(map(len, cases.values()), default=0)
    for case in (c for c in cases.values() if len(c) == whole):
        for row in case:
            given = {k: v for k, v in row["given"].items() if k != "steps"}
            name = f"{row['kind']}: {row['strategy']} {given or ''}"
            found.setdefault(name, []).append(row["test"])
        without = [r for r in case if r["kind"] in ("plain", "scratch")]
        same = [r for r in case if r["kind"] != "other backbone"]
        found.setdefault("best of plain and scratch, in hindsight", []).append(
            max(r["test"] for r in without)
        )
        for name, among in (
            ("best on validation, this backbone", same),
            ("best on validation, all", case),
        ):
            best = max(among, key=lambda r: r["val"])
            found.setdefault(name, []).append(best["test"])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part",
        choices=["harm", "warn", "near", "interventions", "table"],
        help="make the harmful backbone, advise with it, advise with a good one, fit the "
        "interventions, or print the table",
    )
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--backbone-folder", type=Path, help="folder of the harmful backbone")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="backbone of `near`")
    parser.add_argument("--cache-dir", type=Path, default=Path(tempfile.gettempdir()) / "negative")
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--fit-steps", type=int, default=60, help="of the interventions")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROWS)
    args = parser.parse_args(argv)
    keep_freed_memory()
    parts = {"harm": harm, "warn": advise_draws, "near": advise_draws, "table": table}
    parts["interventions"] = fit_interventions
    parts[args.part](args)


if __name__ == "__main__":
    main()
