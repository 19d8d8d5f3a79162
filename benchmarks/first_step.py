"""Measure what AdamW's first update at the default learning rate does to the loss of its batch.

With fixed BatchNorm statistics nothing bounds the change of the features, and a loss far above
that of guessing foretells a training run that fails. `strategies.training` halves the learning
rate until the loss is at most 25 times that of guessing.

Run:      python benchmarks/first_step.py --backbone mobilenetv2_100 --input-px 224
Cost:     5 to 30 s per dataset on one core.
Expected: docs/benchmarks/training.md, section "A learning rate that the network can stand".
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from pinned_split import load_pinned
from rows import Case
from run_suite import fit, subsample
from shared_datasets import DESCRIPTIONS

from strategies.core.allocator import keep_freed_memory
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.training import loop
from strategies.training.optimiser import Optimiser, stable_halvings


def first_losses(root: Path, case: Case, backbone: Backbone) -> tuple[float, list[float]]:
    """Return the default learning rate of full fine-tuning, and the losses of the tried updates.

    Losses are in units of the loss of guessing. The first is that of the default rate, each other
    one that of half the rate before.
    """
    losses: list[float] = []

    def recorded(optimiser: Optimiser, loss: Callable[[], float], n_classes: int) -> int:
        def measured() -> float:
            value = loss()
            losses.append(value / float(np.log(n_classes)))
            return value

        return stable_halvings(optimiser, measured, n_classes)

    dataset = subsample(load_pinned(root), case.n_per_class, case.seed)
    with patch.object(loop, "stable_halvings", recorded):
        row = fit(dataset, backbone, case, "full_fine_tune", {"steps": 1})
    return row["hyperparameters"]["lr"], losses


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table with a row per dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--n-per-class", type=int, default=20)
    parser.add_argument("--sets", nargs="*", default=tuple(DESCRIPTIONS))
    args = parser.parse_args(argv)
    keep_freed_memory()
    backbone = load_backbone(args.backbone, input_px=args.input_px)
    print("| dataset | learning rate | loss after the first update, over that of guessing |")
    print("|---|---|---|")
    for name in args.sets:
        case = Case(name, args.n_per_class, 0, args.input_px, args.backbone)
        rate, losses = first_losses(args.data_root / name, case, backbone)
        tried = ", ".join(f"{value:.1f}" for value in losses)
        print(f"| {name} | {rate:g} | {tried} |", flush=True)


if __name__ == "__main__":
    main()
