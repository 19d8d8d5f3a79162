"""Test the risk of negative transfer on networks that were trained further on other domains.

Each source is the embedded network, trained further on one dataset with its true labels: all its
weights and BatchNorm statistics, at a large learning rate. On every other dataset of `TARGETS`
advice is asked for, and every strategy of `FITTED` is fitted and compared with training from
scratch on test. A case of a source, a dataset and a strategy is harmful where the 90% interval of
the difference is below 0, and helpful where it is above 0. A warning is a risk of at least
`RISKY`. Rows are appended; existing ones are not measured again.

Run:      python benchmarks/harmful_sources.py make --sources-folder FOLDER
          python benchmarks/harmful_sources.py fit --sources-folder FOLDER
          python benchmarks/harmful_sources.py table
Cost:     on one core: make 3 to 5 minutes per source, fit about 2 minutes per source and dataset.
Expected: docs/benchmarks/negative-transfer.md, "Warnings of negative transfer".
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from negative import advise_one, fit, train_further
from pinned_split import load_pinned
from rows import HERE, Row, append_row, read_rows
from run_suite import subsample

from advisor.decide.gain_model import Z
from advisor.findings.transfer import RISKY
from strategies.core.allocator import keep_freed_memory
from strategies.models.backbone import load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE

ROWS = HERE / "harmful_sources.jsonl"
SOURCES = ("fsdd_spec", "pneumonia_cxr", "trash6", "eurosat", "hiragana30")
TARGETS = ("flowers5", "cats_dogs", "trash6", "neu_surface", "sign_digits")
FITTED = ("linear_probe", "layer_svm", "partial_fine_tune", "full_fine_tune")
SCRATCH = "from_scratch"
EMBEDDED = "ImageNet"
"""Name of the embedded network itself among the sources: the control of this test."""
N_PER_CLASS = 40


def make(args: argparse.Namespace) -> None:
    """Train the embedded network further on every source, and save the networks."""
    for source in SOURCES:
        folder = args.sources_folder / source
        if not folder.exists():
            dataset = load_pinned(args.data_root / source)
            train_further(dataset, dataset.train, folder, args)


def fit_all(args: argparse.Namespace) -> None:
    """Ask for advice and fit the strategies for every source and dataset without a row."""
    for target in TARGETS:
        dataset = subsample(load_pinned(args.data_root / target), N_PER_CLASS, args.seed)
        for source in (EMBEDDED, *SOURCES):
            is_own = source == EMBEDDED
            name = DEFAULT_BACKBONE if is_own else f"local-dir:{args.sources_folder / source}"
            about: Row = {"source": source, "set": target, "seed": args.seed}
            known = [r for r in read_rows(args.out) if about.items() <= r.items()]
            if source == target or known:
                continue
            backbone = load_backbone(name, input_px=args.input_px)
            advised = advise_one(dataset.hide_test(), backbone, args.seed, args.cache_dir)
            strategies = (*FITTED, SCRATCH) if is_own else FITTED
            fits = {
                strategy: fit(dataset, backbone, strategy, {}, args.seed, args.cache_dir)
                for strategy in strategies
            }
            row = {**about, "n_per_class": N_PER_CLASS, "input_px": args.input_px, **advised}
            append_row(args.out, {**row, "fits": fits})
            print(source, target, {s: f["test"] for s, f in fits.items()}, flush=True)


def table(args: argparse.Namespace) -> None:
    """Print the gains of every source, and how many harmful cases were warned of."""
    rows = read_rows(args.out)
    scratch = {
        (r["set"], r["seed"]): r["fits"][SCRATCH]["test"] for r in rows if r["source"] == EMBEDDED
    }
    print(f"| trained further on | dataset | from scratch | {' | '.join(FITTED)} | findings |")
    print("|---" * (4 + len(FITTED)) + "|")
    for row in rows:
        base = scratch[row["set"], row["seed"]]
        cells = [_cell(row, strategy, base) for strategy in FITTED]
        issues = ", ".join(row["issues"]) or "none"
        texts = [row["source"], row["set"], f"{100 * base:.1f}%", *cells, issues]
        print(f"| {' | '.join(texts)} |")
    print(
        "\n| network | strategy | harmful | warned | helpful | warned |\n|---|---|---|---|---|---|"
    )
    for network, own in (("ImageNet", True), ("trained further", False)):
        mine = [r for r in rows if (r["source"] == EMBEDDED) == own]
        for strategy in FITTED:
            judged = [
                (_verdict(r, strategy, scratch[r["set"], r["seed"]]), r["risks"][strategy])
                for r in mine
            ]
            harmed = [risk >= RISKY for verdict, risk in judged if verdict < 0]
            helped = [risk >= RISKY for verdict, risk in judged if verdict > 0]
            counts = (len(harmed), sum(harmed), len(helped), sum(helped))
            print(f"| {network} | {strategy} | {' | '.join(map(str, counts))} |")


def _verdict(row: Row, strategy: str, scratch: float) -> int:
    """Return -1 where the strategy is worse than from scratch, 1 where better, 0 if unclear."""
    own, n = row["fits"][strategy]["test"], row["fits"][strategy]["n_test"]
    noise = Z * np.sqrt((own * (1 - own) + scratch * (1 - scratch)) / n)
    return int(np.sign(own - scratch)) if abs(own - scratch) > noise else 0


def _cell(row: Row, strategy: str, scratch: float) -> str:
    """Return the gain over from scratch in points, and the predicted risk."""
    gain = 100 * (row["fits"][strategy]["test"] - scratch)
    mark = {-1: "**", 0: "", 1: ""}[_verdict(row, strategy, scratch)]
    return f"{mark}{gain:+.1f}{mark} ({100 * row['risks'][strategy]:.0f}%)"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["make", "fit", "table"])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sources-folder", type=Path, help="folder of the networks")
    parser.add_argument("--cache-dir", type=Path, default=Path(tempfile.gettempdir()) / "sources")
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROWS)
    args = parser.parse_args(argv)
    if args.part != "table" and args.sources_folder is None:
        parser.error("--sources-folder is needed to make the networks and to fit them")
    keep_freed_memory()
    {"make": make, "fit": fit_all, "table": table}[args.part](args)


if __name__ == "__main__":
    main()
