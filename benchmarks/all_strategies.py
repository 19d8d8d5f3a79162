"""Fit every strategy with its defaults to small draws of datasets; print accuracy and seconds.

Draws, test images and fits are those of `run_suite.py`. The strategies of a case are fitted one
after the other, so that their seconds are comparable. Rows are appended; existing ones are not
measured again.

Run:      taskset -c 0 python benchmarks/all_strategies.py --data-root FOLDER
Cost:     an hour and a quarter on one core, without a GPU
Expected: the table in docs/benchmarks/suite.md, "All strategies with 20 images per class"
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pinned_split import load_pinned
from rows import HERE, Case, Row, append_row, case_of, read_rows
from run_suite import fit, subsample

from strategies.core.allocator import keep_freed_memory
from strategies.models.backbone import load_backbone
from strategies.registry import STRATEGIES

SETS = ("flowers5", "sign_digits", "neu_surface", "cats_dogs")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the fits that have no row yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=HERE / "all_strategies.jsonl")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--n-per-class", type=int, default=20)
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args(argv)
    keep_freed_memory()
    if not args.table:
        run(args)
    print(table(read_rows(args.out)))


def run(args: argparse.Namespace) -> None:
    """Append a row for every case and strategy without one."""
    backbone = load_backbone(input_px=args.input_px)
    for seed in args.seeds:
        for name in args.sets:
            case = Case(name, args.n_per_class, seed, args.input_px)
            whole = load_pinned(args.data_root / name)
            drawn = subsample(whole, args.n_per_class, seed)
            for strategy, kind in STRATEGIES.items():
                if kind().inapplicable(drawn, backbone) is not None:
                    continue
                if (case, strategy) in {(case_of(r), r["strategy"]) for r in read_rows(args.out)}:
                    continue
                row = fit(drawn, backbone, case, strategy, {})
                append_row(args.out, row)
                print(*case, strategy, row["accuracy"], row["seconds"], flush=True)


def table(rows: Sequence[Row]) -> str:
    """Return test accuracy in per cent (mean and range over seeds) and median seconds."""
    sets = list(dict.fromkeys(r["set"] for r in rows))
    lines = [
        f"| strategy | {' | '.join(sets)} | seconds |",
        "|---|" + "---|" * (len(sets) + 1),
    ]
    for strategy in STRATEGIES:
        own = [r for r in rows if r["strategy"] == strategy]
        if own:
            cells = [_accuracy([r for r in own if r["set"] == name]) for name in sets]
            seconds = float(np.median([r["seconds"] for r in own]))
            lines.append(f"| `{strategy}` | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _accuracy(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    found = [100 * r["accuracy"] for r in rows]
    return f"{np.mean(found):.1f} [{min(found):.1f}, {max(found):.1f}]"


if __name__ == "__main__":
    main()
