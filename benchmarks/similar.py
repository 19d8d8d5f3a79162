"""Share of similar images that have the class of the query, against the advice's k-NN accuracy.

For every dataset and seed of its split, a strategy (default: the linear probe) is fitted to the
train images on the embedded backbone. The five most similar train images to every test image are
those of `tl-auto similar`. The accuracy of the nearest neighbours in the advice is that of a
weighted vote, of about the square root of the number of images per class; it is cross-validated
on train and validation.

Run:      python benchmarks/similar.py --data-root FOLDER [--strategy NAME] [--cache-dir DIR]
Cost:     a quarter of an hour on one busy core for four datasets and three seeds.
Expected: by "classifier", the share is about the accuracy of the classifier, and at least the k-NN
          accuracy within the spread of the splits.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from shared_datasets import DATA

from advisor.deploy.labelled import LabelledFile
from advisor.deploy.similar import similar_images
from advisor.measure.knn import knn_accuracy
from advisor.measure.profile import sample
from strategies.core.context import RunContext, make_context
from strategies.core.folds import fold_numbers
from strategies.data.dataset import Dataset, groups_of, labels_of, load_dataset
from strategies.data.image import Split
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.explain.nearest import By
from strategies.models.features import pooled_features
from strategies.registry import get_strategy

SETS = ("hymenoptera", "flowers5", "trash6", "neu_surface")
K = 5
BY: tuple[By, ...] = ("features", "classifier")


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per dataset."""
    args = _arguments(argv)
    backbone = load_backbone(input_px=args.input_px)
    print(
        "| dataset | searched, queries | k-NN of the advice | features | classifier | accuracy |"
    )
    print("|---|---|---|---|---|---|")
    for name in args.sets:
        rows = []
        for seed in range(args.seeds):
            ctx = make_context(cache_dir=args.cache_dir, seed=seed)
            dataset = load_dataset(args.data_root / name, seed=seed, cache=ctx.cache)
            rows.append(measured(dataset, backbone, ctx, args.strategy))
        sizes = f"{len(dataset.train):,}, {len(dataset.test or ()):,}"
        cells = [_mean_and_sd([row[i] for row in rows]) for i in range(4)]
        print(f"| {name} | {sizes} | {' | '.join(cells)} |", flush=True)


def measured(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, strategy: str
) -> tuple[float, ...]:
    """Return k-NN accuracy, share of the query's class by each kind, and the test accuracy."""
    test = dataset.test or ()
    fitted = get_strategy(strategy)().fit(dataset, backbone, ctx)
    hits = fitted.predict_proba([image.path for image in test]).argmax(axis=1) == labels_of(test)
    shares = (share_of_class(fitted, dataset, ctx, by) for by in BY)
    return advised_knn(dataset, backbone, ctx), *shares, float(hits.mean())


def advised_knn(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> float:
    """Return the accuracy of the nearest neighbours as the advice measures it."""
    images = sample(dataset.fit_split, ctx.seed)
    labels, groups = labels_of(images), groups_of(images)
    features = pooled_features(images, backbone, ctx, [backbone.n_depths])
    folds = fold_numbers(labels, ctx.seed, groups=groups)
    return knn_accuracy(features, labels, dataset.n_classes, folds).mid


def share_of_class(
    classifier: ImageClassifier, dataset: Dataset, ctx: RunContext, by: By
) -> float:
    """Return the share of the most similar train images that have the class of a test image."""
    test = dataset.test or ()
    found = similar_images(classifier, _files(test), _files(dataset.train), ctx, k=K, by=by)
    labels = {image.path: str(image.label) for image in test}
    return float(np.mean([n.label == labels[path] for path, near in found.found for n in near]))


def _files(images: Split) -> list[LabelledFile]:
    return [LabelledFile(image.path, str(image.label), "") for image in images]


def _mean_and_sd(shares: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):.1f}{spread}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--strategy", default="linear_probe")
    parser.add_argument("--seeds", type=int, default=3, help="number of splits per dataset")
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--cache-dir", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
