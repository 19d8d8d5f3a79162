"""Compare the default learning rate of every strategy that trains the network with given ones.

One row per fit is appended to the file; fits that have a row are skipped. Then a table is printed:
test accuracy with the default and with the best given learning rate, means over the seeds. The
best one is chosen by the test images themselves, so it is favoured by luck.

Run:      python benchmarks/learning_rates.py --data-root FOLDER --backbone mobilenetv2_100
Cost:     an hour and a half on one core, at 96 px with 20 images per class: 288 fits.
          `--sets` without names prints the table of existing rows in seconds.
Expected: docs/benchmarks/training.md.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pinned_split import load_pinned
from rows import Case, Row, append_row, case_of, read_rows
from run_suite import fit, subsample

from strategies.core.allocator import keep_freed_memory
from strategies.models.backbone import load_backbone

ROWS = Path(__file__).resolve().parent / "learning_rates.jsonl"
SETS = ("flowers5", "dtd10", "cats_dogs", "neu_surface", "sign_digits", "pacs_sketch")
"""Three datasets near ImageNet and three far from it."""
LEARNING_RATES = {
    "partial_fine_tune": (3e-4, 1e-3, 3e-3),
    "full_fine_tune": (3e-4, 1e-3, 3e-3),
    "norm_tune": (1e-3, 3e-3, 1e-2),
    "first_stages": (3e-4, 1e-3, 3e-3),
}
"""Learning rates given to each strategy. The middle one is about its default on other networks."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the fits that have no row yet, then print the table."""
    args = _arguments(argv)
    keep_freed_memory()
    backbone = load_backbone(args.backbone, input_px=args.input_px)
    for strategy in args.strategies:
        for name in args.sets:
            for seed in args.seeds:
                case = Case(name, args.n_per_class, seed, args.input_px, args.backbone)
                known = [r for r in read_rows(args.out) if case_of(r) == case]
                fitted = [r["grid"] for r in known if r["strategy"] == strategy]
                todo = [g for g in _given(strategy, args.steps) if g not in fitted]
                if todo:
                    whole = load_pinned(args.data_root / name)
                    dataset = subsample(whole, case.n_per_class, seed)
                for given in todo:
                    append_row(args.out, fit(dataset, backbone, case, strategy, given))
    print(table([r for r in read_rows(args.out) if case_of(r).backbone == args.backbone]))


def _given(strategy: str, steps: int | None) -> list[dict[str, float]]:
    """Return the hyperparameters given to a strategy: without and with each learning rate."""
    always: dict[str, float] = {} if steps is None else {"steps": steps}
    return [always, *({**always, "lr": lr} for lr in LEARNING_RATES[strategy])]


def table(rows: Sequence[Row]) -> str:
    """Return accuracy by strategy and dataset, in per cent, and how far the default is behind.

    The last column is fairer: for every seed, the rate that is best with the other seeds.
    """
    found: dict[tuple[str, str], dict[float | None, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        rate = row["grid"].get("lr")
        found[row["strategy"], row["set"]][rate][row["seed"]] = 100 * row["accuracy"]
    lines = [
        "| strategy | dataset | default | best given learning rate | default minus best | seeds "
        "| minus the best of other seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    behind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (strategy, name), by_rate in sorted(found.items(), key=lambda item: item[0][0]):
        default = by_rate.pop(None, {})
        if not default or not by_rate:
            continue
        mean = {rate: float(np.mean(list(of.values()))) for rate, of in by_rate.items()}
        best = max(mean, key=lambda rate: mean[rate])
        of_default = float(np.mean(list(default.values())))
        gaps = of_default - mean[best], _gap_to_other_seeds(default, by_rate)
        behind[strategy].append(gaps)
        lines.append(
            f"| {strategy} | {name} | {of_default:.1f} | {mean[best]:.1f} ({best:g}) | "
            f"{_mean([gaps[0]])} | {len(default)} | {_mean([gaps[1]])} |"
        )
    for strategy, pairs in behind.items():
        gap, fair = (_mean(of) for of in zip(*pairs, strict=True))
        lines.append(f"| **{strategy}** | mean of {len(pairs)} | | | **{gap}** | | **{fair}** |")
    return "\n".join(lines)


def _mean(gaps: Sequence[float]) -> str:
    """Return the mean of some gaps as text, with its standard error if there are several."""
    if np.isnan(gaps).any():
        return "not measured"
    error = f" ± {np.std(gaps, ddof=1) / np.sqrt(len(gaps)):.1f}" if len(gaps) > 1 else ""
    return f"{np.mean(gaps):+.1f}{error}"


def _gap_to_other_seeds(
    default: Mapping[int, float], by_rate: Mapping[float | None, Mapping[int, float]]
) -> float:
    """Return the mean gap to the rate that is best with the other seeds; NaN with one seed."""
    gaps = []
    for seed, accuracy in default.items():
        others = {
            rate: [a for other, a in of.items() if other != seed]
            for rate, of in by_rate.items()
            if seed in of and len(of) > 1
        }
        if others:
            best = max(others, key=lambda rate: float(np.mean(others[rate])))
            gaps.append(accuracy - by_rate[best][seed])
    return float(np.mean(gaps)) if gaps else float("nan")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--strategies", nargs="*", default=tuple(LEARNING_RATES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--n-per-class", type=int, default=20)
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--steps", type=int, help="steps of every fit; default: its default")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
