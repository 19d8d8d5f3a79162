"""Unknown images and prediction sets: AUROC, false alarms and coverage on real datasets.

For every dataset and seed of its split, a strategy (default: the linear probe) is fitted as a run
fits it, refitted on train and validation, and calibrated as a run calibrates it
(`advisor/tune/trials/reliability.py`): once with all classes, and once without each of some
classes drawn at random. Known images are those of the test split. Unknown ones are all images of
the class left out, or with all classes, up to 40 validation images of each of the other datasets.
Rows are appended to ``--out``; existing ones are not measured again.

Coverage and size of the prediction sets are recorded at several stated rates. A set is never
empty, so it covers at least the accuracy: only at rates above the accuracy can coverage be equal
to what is stated.

Run:      python benchmarks/unknown.py --data-root FOLDER [--sets ...] [--cache-dir DIR]
Cost:     a feature pass of every image of the datasets (about 11,000), then seconds per row.
Expected: the bars and numbers of README.md, "Unknown images and prediction sets".
"""

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rows import Row, append_row, read_rows
from scipy.special import softmax
from shared_datasets import DATA
from sklearn.metrics import roc_auc_score

from advisor.tune.trials.reliability import calibrate_head, calibrate_network
from strategies.core.context import RunContext, make_context
from strategies.core.metrics import Labels, Scores
from strategies.data.dataset import Dataset, labels_of, load_dataset
from strategies.data.image import Split
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import pooled_features
from strategies.models.multi_view import features_at
from strategies.models.reliability.conformal import upper_quantile
from strategies.models.reliability.reliability import COVERAGE, FALSE_ALARMS, Reliability
from strategies.registry import get_strategy

SETS = (
    "flowers5",
    "trash6",
    "neu_surface",
    "dtd10",
    "sign_digits",
    "eurosat",
    "weather4",
    "fruit28",
)
SAME_CLASSES = frozenset({"pacs_sketch", "art_painting7"})
"""Datasets of the same classes: their images are not unknown to each other."""
MAX_FOREIGN, MAX_UNKNOWN = 40, 400
STATED = (0.8, 0.9, 0.95, 0.98, 0.99)
"""Stated coverages of prediction sets."""
N_RESAMPLES = 10_000


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows that are missing, then print the table of all rows."""
    args = _arguments(argv)
    backbone = load_backbone(input_px=args.input_px)
    rows = read_rows(args.out)
    known = {_key(row) for row in rows}

    @functools.cache
    def dataset_of(name: str, seed: int) -> Dataset:
        cache = make_context(cache_dir=args.cache_dir).cache
        return load_dataset(
            args.data_root / name, seed=seed, cache=cache, max_images=args.max_images
        )

    for seed in args.seeds:
        for name in args.sets:
            ctx = make_context(cache_dir=args.cache_dir, seed=seed)
            whole = dataset_of(name, seed)
            others = [n for n in args.sets if n != name and not {n, name} <= SAME_CLASSES]
            order = np.random.default_rng(seed).permutation(whole.n_classes)[: args.left]
            for left in [None, *(order.tolist() if whole.n_classes > 2 else [])]:
                about = {"set": name, "seed": seed, "left": left, "strategy": args.strategy}
                about["input_px"] = args.input_px
                if _key(about) in known:
                    continue
                if left is None:
                    unknown = tuple(
                        image for n in others for image in dataset_of(n, 0).val[:MAX_FOREIGN]
                    )
                    row = about | measured(whole, unknown, backbone, ctx, args.strategy)
                else:
                    rest, images = without(whole, left)
                    row = about | measured(rest, images, backbone, ctx, args.strategy)
                append_row(args.out, row)
                rows.append(row)
                print(json.dumps(row), flush=True)
    chosen = {"strategy": args.strategy, "input_px": args.input_px}
    shown = [r for r in rows if chosen.items() <= r.items() and r["set"] in args.sets]
    print(table(shown))
    print(coverage_table(shown))


def without(dataset: Dataset, left: int) -> tuple[Dataset, Split]:
    """Return the dataset without a class, and the images of that class, at most 400."""
    everything = (*dataset.fit_split, *(dataset.test or ()))
    of_class = tuple(image for image in everything if image.label == left)

    def rest(split: Split) -> Split:
        kept = (image for image in split if image.label != left)
        return tuple(replace(p, label=p.label - (p.label > left)) for p in kept)

    names = tuple(name for c, name in enumerate(dataset.classes) if c != left)
    train, val, test = map(rest, (dataset.train, dataset.val, dataset.test or ()))
    smaller = replace(dataset, classes=names, train=train, val=val, test=test)
    return smaller, of_class[:MAX_UNKNOWN]


def measured(
    dataset: Dataset, unknown: Split, backbone: Backbone, ctx: RunContext, strategy: str
) -> Row:
    """Fit, calibrate, and return what the classifier says about test and unknown images."""
    kind, test = get_strategy(strategy), dataset.test or ()
    one_view = {"views": 1} if "views" in kind.hyperparameter_types() else {}
    fitted = kind.from_hyperparameters(one_view).fit(dataset.hide_test(), backbone, ctx)
    if kind.trains_network:
        reliability = calibrate_network(fitted, dataset.hide_test(), ctx)
    else:
        chosen = kind.from_hyperparameters(fitted.hyperparameters)
        fitted = chosen.fit(dataset.hide_test().with_val_in_train(), backbone, ctx)
        learned = dataset.hide_test().with_val_in_train()
        reliability = calibrate_head(fitted, learned, ctx)
    row: Row = {"n_val": len(dataset.val), "n_test": len(test), "n_unknown": len(unknown)}
    if isinstance(reliability, str):
        return row | {"reason": reliability}
    fitted = replace(fitted, reliability=reliability)
    (known_p, known), (_, others) = (outputs(fitted, images, ctx) for images in (test, unknown))
    labels, threshold = labels_of(test), reliability.threshold(FALSE_ALARMS)
    correct, is_unknown = known_p.argmax(axis=1) == labels, known > threshold
    found = {
        "accuracy": np.mean(correct),
        "accuracy_of_known": np.mean(correct[~is_unknown]),
        "false_alarms": np.mean(is_unknown),
        "found": np.mean(others > threshold) if len(others) else None,
    }
    if len(others):
        truth = np.repeat([0, 1], [len(known), len(others)])
        found["auroc"] = roc_auc_score(truth, np.concatenate([known, others]))
    row |= {"n_held_out": reliability.n, "held_out": reliability.held_out}
    row |= {k: None if v is None else round(float(v), 4) for k, v in found.items()}
    by_rate = {str(rate): of_sets(reliability, known_p, labels, rate) for rate in STATED}
    return row | {"prediction_sets": by_rate}


def of_sets(reliability: Reliability, rows: Scores, labels: Labels, rate: float) -> Row:
    """Return coverage and mean size of prediction sets, and the coverage if they may be empty."""
    own = np.arange(len(labels)), labels
    sets = reliability.prediction_sets(rows, rate)
    found = {
        "coverage": np.mean(sets[own]),
        "if_empty": np.mean(1 - rows[own] <= upper_quantile(reliability.nonconformity, 1 - rate)),
        "size": np.mean(sets.sum(axis=1)),
    }
    return {k: round(float(v), 4) for k, v in found.items()}


@torch.inference_mode()
def outputs(classifier: ImageClassifier, images: Split, ctx: RunContext) -> tuple[Scores, Scores]:
    """Return probabilities and unknown scores; a head's are from cached features."""
    if not images:
        return np.empty((0, len(classifier.classes)), np.float32), np.empty(0, np.float32)
    reliability = classifier.reliability
    assert reliability is not None
    if get_strategy(classifier.strategy).trains_network:
        found = classifier.predict_outputs([image.path for image in images])
        assert found.unknown is not None
        return found.probabilities, found.unknown
    read = classifier.depths, classifier.pooling
    x = features_at(images, classifier.backbone, ctx, *read, 1)[:, 0]
    head = classifier.network.head
    scores = head(torch.from_numpy(x).to(head.weight.device)).cpu().numpy()
    x = pooled_features(images, classifier.backbone, ctx, reliability.depths.numbers)
    unknown = reliability.module()(torch.from_numpy(x))
    return softmax(scores, axis=1), unknown.numpy()


def table(rows: Sequence[Row]) -> str:
    """Return a line per dataset, means over seeds, and the means over datasets with intervals."""
    rows = [row for row in rows if "reason" not in row]
    names = list(dict.fromkeys(row["set"] for row in rows))
    lines = [
        "| dataset | accuracy | AUROC, class left out | AUROC, other datasets | false alarms |"
        " coverage | without the rule | mean set |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns: list[list[float]] = [[] for _ in range(6)]
    for name in names:
        own = [row for row in rows if row["set"] == name]
        whole = [row for row in own if row["left"] is None]
        cells = [
            _mean(whole, "accuracy"),
            _mean([row for row in own if row["left"] is not None], "auroc"),
            _mean(whole, "auroc"),
            _mean(own, "false_alarms"),
            _mean_of_sets(own, COVERAGE, "coverage"),
            _mean_of_sets(own, COVERAGE, "if_empty"),
        ]
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
        texts = [f"{100 * cells[0]:.1f}%", f"{cells[1]:.3f}", f"{cells[2]:.3f}"]
        texts += [f"{100 * cell:.1f}%" for cell in cells[3:]]
        size = _mean_of_sets(own, COVERAGE, "size")
        lines.append(f"| {name} | {' | '.join(texts)} | {size:.2f} |")
    summary = [_interval(columns[0], 100), _interval(columns[1], 1), _interval(columns[2], 1)]
    summary += [_interval(column, 100) for column in columns[3:]]
    lines.append(f"| **mean** | {' | '.join(summary)} | |")
    return "\n".join(lines)


def coverage_table(rows: Sequence[Row]) -> str:
    """Return a line per dataset: coverage and mean size of the sets at every stated rate.

    The last columns are the smallest stated rate above the accuracy, where coverage can be equal
    to what is stated, and coverage minus that rate in points. Rows that were
    measured at 90% only are left out.
    """
    rows = [row for row in rows if "reason" not in row]
    rows = [row for row in rows if {*map(str, STATED)} <= row["prediction_sets"].keys()]
    names = list(dict.fromkeys(row["set"] for row in rows))
    stated = " | ".join(f"stated {100 * rate:.0f}%" for rate in STATED)
    lines = [
        f"| dataset | classifiers | held out | accuracy | {stated} "
        "| above the accuracy | difference |",
        "|" + (6 + len(STATED)) * "---|",
    ]
    for name in names:
        own = [row for row in rows if row["set"] == name]
        accuracy = _mean(own, "accuracy")
        covered = {rate: _mean_of_sets(own, rate, "coverage") for rate in STATED}
        cells = [
            f"{100 * covered[rate]:.1f}% ({_mean_of_sets(own, rate, 'size'):.2f})"
            for rate in STATED
        ]
        above = min((rate for rate in STATED if rate > accuracy), default=None)
        cells += (
            ["none", "–"]
            if above is None
            else [f"{100 * above:.0f}%", f"{100 * (covered[above] - above):+.1f}"]
        )
        about = f"{len(own)} | {_mean(own, 'n_held_out'):,.0f} | {100 * accuracy:.1f}%"
        lines.append(f"| {name} | {about} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_of_sets(rows: Sequence[Row], rate: float, name: str) -> float:
    """Return a mean over rows; rows that were measured at 90% only have no other rate."""
    return _mean([row["prediction_sets"].get(str(rate), {}) for row in rows], name)


def _mean(rows: Sequence[Row], name: str) -> float:
    found = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(found)) if found else float("nan")


def _interval(values: Sequence[float], factor: float) -> str:
    """Return the mean over datasets with a 90% bootstrap interval over datasets."""
    known = np.array([v for v in values if np.isfinite(v)])
    if not len(known):
        return "–"
    drawn = np.random.default_rng(0).choice(known, (N_RESAMPLES, len(known))).mean(axis=1)
    low, high = np.quantile(drawn, (0.05, 0.95))
    mid, low, high = (factor * float(v) for v in (known.mean(), low, high))
    digits = 1 if factor == 100 else 3
    return f"{mid:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[k] for k in ("set", "seed", "left", "strategy", "input_px"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/unknown.jsonl"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--strategy", default="linear_probe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the splits")
    parser.add_argument("--left", type=int, default=3, help="classes left out in turn")
    parser.add_argument("--input-px", type=int, default=224)
    parser.add_argument("--max-images", type=int, help="images read of a split; default: all")
    parser.add_argument("--cache-dir", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
