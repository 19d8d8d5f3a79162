"""Measure the speed-up of caching the activations of frozen stages during partial fine-tuning.

Three training runs of ten epochs are compared, with the same start, recipe, seeds and images:
without the cache, with an empty cache (filling it included), and with the cache that the second
run filled, as in later trials of a search. The three runs have one row, appended when they are
done; cases that have a row are skipped. The table is in CPU seconds, which depend little on other
load when OMP_NUM_THREADS=1 is set.

Run:      OMP_NUM_THREADS=1 python benchmarks/prefix_cache.py --data-root FOLDER --out FILE
Cost:     17 minutes on one core; `--sets` without names prints the table in seconds.
Expected: a speed-up above 1 at equal accuracy (docs/benchmarks/training.md).
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fine_tune_defaults import draw
from pinned_split import load_pinned
from rows import append_row, read_rows

from strategies.core.activation_store import ActivationStore
from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, TrainingResources, make_context
from strategies.data.dataset import Dataset, labels_of
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import make_network, set_head
from strategies.models.network import scores_of
from strategies.training import frozen_activations
from strategies.training.lp_ft import Probe, complete, fit_probe
from strategies.training.recipe import Recipe, RecipeDraft
from strategies.training.trainer import train

EPOCHS, BATCH_SIZE = 10, 32


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases that have no row yet, then print the table."""
    args = _arguments(argv)
    keep_freed_memory()
    backbone = load_backbone(input_px=args.input_px)
    for name in args.sets:
        dataset = load_pinned(args.data_root / name)
        for seed in args.seeds:
            drawn = draw(dataset, args.n_per_class, seed)
            ctx = make_context(cache_dir=args.cache_dir, seed=seed)
            start = fit_probe(drawn, backbone, ctx)
            for frozen in args.frozen:
                case = {"set": name, "seed": seed, "frozen": frozen, "input_px": args.input_px}
                if any(case.items() <= row.items() for row in read_rows(args.out)):
                    continue
                row = case | compare(drawn, backbone, start, frozen, ctx)
                append_row(args.out, row)
                print(row, flush=True)
    print(table(read_rows(args.out)))


def compare(
    dataset: Dataset, backbone: Backbone, start: Probe, frozen: int, ctx: RunContext
) -> dict[str, Any]:
    """Train with an empty cache, a full cache and none; return seconds and test accuracies."""
    draft = RecipeDraft(
        steps=EPOCHS * len(dataset.train) // BATCH_SIZE,
        blend=1.0,
        hflip=False,
        frozen_stages=frozen,
        batch_size=BATCH_SIZE,
    )
    recipe = complete(draft, start, dataset, backbone, ctx)
    row: dict[str, Any] = {"n_train": len(dataset.train), "steps": recipe.steps}
    sharing = replace(ctx, training=TrainingResources(activation_store=ActivationStore()))
    for name in ("cached", "again"):
        found = _train(dataset, backbone, start, recipe, sharing)
        row |= {f"{name}{k}": v for k, v in found.items()}
    with mock.patch.object(frozen_activations, "MOST_BYTES", 0):
        row |= {f"plain{k}": v for k, v in _train(dataset, backbone, start, recipe, ctx).items()}
    return row


def _train(
    dataset: Dataset, backbone: Backbone, start: Probe, recipe: Recipe, ctx: RunContext
) -> dict[str, float]:
    """Return wall-clock and CPU seconds of a training run, and its test accuracy (key "")."""
    assert dataset.test is not None
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        set_head(network, start.head.weight, start.head.bias)
        wall, cpu = time.perf_counter(), time.process_time()
        train(network, dataset.hide_test(), backbone, recipe, ctx)
        times = {"_s": time.perf_counter() - wall, "_cpu_s": time.process_time() - cpu}
    found = scores_of(network, dataset.test, backbone, ctx).argmax(axis=1)
    times = {name: round(seconds, 2) for name, seconds in times.items()}
    return times | {"": float(np.mean(found == labels_of(dataset.test)))}


def table(rows: list[dict[str, Any]]) -> str:
    """Return seconds, speed-ups and accuracy differences (mean and sd over seeds) as Markdown."""
    grouped: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["set"], row["input_px"], row["frozen"]].append(row)
    lines = [
        "| dataset | input px | frozen stages | no cache, CPU s | cache, CPU s | speed-up | "
        "speed-up, cache full | accuracy difference, points (seeds) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, px, frozen), own in grouped.items():
        plain, cached, again = (
            np.array([r[f"{k}_cpu_s"] for r in own]) for k in ("plain", "cached", "again")
        )
        gap = 100 * np.array([r["cached"] - r["plain"] for r in own])
        spread = f" ± {gap.std(ddof=1):.1f}" if len(own) > 1 else ""
        lines.append(
            f"| {name} | {px} | {frozen} | {plain.mean():.1f} | {cached.mean():.1f} | "
            f"{(plain / cached).mean():.2f} | {(plain / again).mean():.2f} | "
            f"{gap.mean():+.1f}{spread} ({len(own)}) |"
        )
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/prefix_cache.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--sets", nargs="*", default=["flowers5", "sign_digits", "dtd10"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--frozen", nargs="*", type=int, default=[3, 4])
    parser.add_argument("--n-per-class", type=int, default=20)
    parser.add_argument("--input-px", type=int, default=224)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
