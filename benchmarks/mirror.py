"""Measure flip asymmetry of datasets, and the effect of horizontal flips on full fine-tuning.

Images are drawn as in the suite (`run_suite.py`). Every case has one row with the flip asymmetry
of its train images (`strategies/models/flip_symmetry.py`). With ``--fit`` it also has the
accuracy of a full fine-tune with random horizontal flips and of one without, all other
hyperparameters at their defaults, on up to 400 train and validation images that were not drawn:
the test split is not used. Rows are appended to ``--out``; existing ones are not measured again.

Run:      python benchmarks/mirror.py --data-root FOLDER --sets gtsrb pacs_sketch \
              --n-per-class 5 20 [--fit]
Cost:     two passes over the train images of a case; with ``--fit`` two full fine-tunes more.
Expected: asymmetry well above its noise for letters and signs; flips hurt gtsrb and help
          pacs_sketch (docs/benchmarks/training.md).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pinned_split import load_pinned
from rows import append_row, read_rows
from run_suite import REFERENCE_SET, subsample

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, make_context
from strategies.data.dataset import Dataset
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import evaluate
from strategies.models.flip_symmetry import measure_flip_asymmetry
from strategies.training.recipe import RecipeDraft

MAX_EVALUATED = 400


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases that have no row yet, then print the table of all rows."""
    args = _arguments(argv)
    keep_freed_memory()
    names = args.sets or sorted(
        p.name for p in args.data_root.iterdir() if p.is_dir() and p.name != REFERENCE_SET
    )
    backbone = load_backbone(input_px=args.input_px)
    rows = read_rows(args.out)
    known = {(r["set"], r["n_per_class"], r["seed"], r.get("hflip")) for r in rows}
    for name in names:
        whole = load_pinned(args.data_root / name)
        for n in args.n_per_class:
            for seed in args.seeds:
                dataset = subsample(whole, n, seed).hide_test()
                ctx = make_context(cache_dir=args.cache_dir, seed=seed)
                about = {"set": name, "n_per_class": n, "seed": seed}
                for hflip in (None, *((False, True) if args.fit else ())):
                    if (name, n, seed, hflip) in known:
                        continue
                    row = about | measure(dataset, whole, backbone, ctx, hflip, args.steps)
                    append_row(args.out, row)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    print(table(rows))


def measure(
    dataset: Dataset,
    whole: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    hflip: bool | None,
    steps: int | None,
) -> dict[str, Any]:
    """Return the flip asymmetry of the train images for `hflip` None, else a fine-tune's row."""
    if hflip is None:
        found = measure_flip_asymmetry(dataset.train, backbone, ctx)
        assert found is not None
        return {"flip_asymmetry": round(found.cosine, 4), "noise": round(found.sd, 4)}
    used = {p.path for p in dataset.fit_split}
    left = [p for p in whole.fit_split if p.path not in used]
    order = np.random.default_rng(ctx.seed).permutation(len(left))[:MAX_EVALUATED]
    held_out = tuple(left[i] for i in sorted(order))
    fitted = FullFineTune(RecipeDraft(hflip=hflip, steps=steps)).fit(dataset, backbone, ctx)
    accuracy = evaluate(fitted, held_out).accuracy.mid
    return {"hflip": hflip, "accuracy": round(accuracy, 4), "n_judged": len(held_out)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return flip asymmetry, and the gain of flips in points, by dataset and size.

    Ranges are over seeds; gains are listed by seed.
    """
    cases = sorted({(r["set"], r["n_per_class"]) for r in rows})
    lines = ["| dataset, images per class | flip asymmetry | noise | gain of flips, points |"]
    lines.append("|---|---|---|---|")
    for name, n in cases:
        own = [r for r in rows if (r["set"], r["n_per_class"]) == (name, n)]
        asymmetries = [r["flip_asymmetry"] for r in own if "flip_asymmetry" in r]
        noise = [r["noise"] for r in own if "noise" in r]
        accuracy = {(r["seed"], r["hflip"]): r["accuracy"] for r in own if "hflip" in r}
        seeds = sorted({s for s, _ in accuracy if {(s, True), (s, False)} <= accuracy.keys()})
        gains = [f"{100 * (accuracy[s, True] - accuracy[s, False]):+.1f}" for s in seeds]
        spans = [f"{min(v):.3f} to {max(v):.3f}" if v else "–" for v in (asymmetries, noise)]
        lines.append(f"| {name}, {n} | {spans[0]} | {spans[1]} | {', '.join(gains) or '–'} |")
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/mirror.jsonl"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--sets", nargs="*", help="datasets; default: all in the data root")
    parser.add_argument("--n-per-class", nargs="*", type=int, default=[5, 20])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--fit", action="store_true", help="fine-tune with and without flips")
    parser.add_argument("--steps", type=int, help="of the fine-tune; default: its default")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
