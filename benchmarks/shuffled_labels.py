"""Ask for advice on images with shuffled labels, from which nothing can be learned.

Every draw takes ``--n-per-class`` images of each class and deals their labels out at random. The
advice must begin with that, and expect no strategy above chance (the largest class's share).

Run:      python benchmarks/shuffled_labels.py --data-root FOLDER [--cache-dir DIR]
Cost:     about 20 s per draw on one core; 2 datasets x 5 draws by default.
Expected: on every draw the headline says it, the interval of every strategy contains chance, and
          its middle is at most 3 points above it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pinned_split import load_pinned
from run_suite import subsample
from shared_datasets import DATA

from advisor.advise import Prepared, advise_on
from advisor.types.advice import Advice
from advisor.types.options import Options
from advisor.types.summary import headline
from strategies.core.context import make_context
from strategies.data.dataset import Dataset
from strategies.data.image import Split
from strategies.models.backbone import load_backbone

SETS = ("flowers5", "neu_surface")
MAX_ABOVE_CHANCE = 0.03
"""Highest middle of an expected accuracy above chance."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per draw, and how many draws are as expected."""
    args = _arguments(argv)
    backbone = load_backbone(input_px=args.input_px)
    good = []
    print(
        "| dataset | seed | chance | linear probe | highest middle | all contain chance | said |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in args.sets:
        whole = load_pinned(args.data_root / name)
        for seed in range(args.seeds):
            dataset = shuffled(subsample(whole, args.n_per_class, seed), seed)
            options = Options(input_px=args.input_px, seed=seed)
            ctx = make_context(cache_dir=args.cache_dir, seed=seed)
            advice = advise_on(Prepared(dataset, backbone, (), (), options, ctx))
            print(row_of(name, seed, advice), flush=True)
            good.append(is_as_expected(advice))
    print(f"\nAs expected: {sum(good)} of {len(good)} draws.")


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Return the dataset with the labels of train and validation dealt out at random."""
    images = (*dataset.train, *dataset.val)
    order = np.random.default_rng(seed).permutation(len(images))
    dealt: Split = tuple(
        replace(image, label=images[row].label) for image, row in zip(images, order, strict=True)
    )
    n_train = len(dataset.train)
    return replace(dataset, train=dealt[:n_train], val=dealt[n_train:])


def is_as_expected(advice: Advice) -> bool:
    """Return whether the advice is void, and no strategy is expected above chance."""
    return (
        advice.void is not None
        and _contain_chance(advice)
        and (_highest(advice) <= advice.profile.majority_share + MAX_ABOVE_CHANCE)
    )


def row_of(name: str, seed: int, advice: Advice) -> str:
    """Return a row of the table."""
    profile = advice.profile
    cells = (
        name,
        str(seed),
        f"{100 * profile.majority_share:.1f}%",
        profile.linear_probe.accuracy.percent(),
        f"{100 * _highest(advice):.1f}%",
        "yes" if _contain_chance(advice) else "no",
        headline(advice).split(";")[0],
    )
    return f"| {' | '.join(cells)} |"


def _highest(advice: Advice) -> float:
    return max(r.accuracy.mid for r in advice.recommendations)


def _contain_chance(advice: Advice) -> bool:
    chance = advice.profile.majority_share
    return all(r.accuracy.low <= chance <= r.accuracy.high for r in advice.recommendations)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--n-per-class", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5, help="number of draws per dataset")
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--cache-dir", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
