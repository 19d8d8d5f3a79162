"""Whether activation maps show what a classifier uses: deletion test and sanity checks.

For every dataset a strategy (default: the linear probe) is fitted to the train images on the
embedded backbone. On test images:

- deletion: the largest fifth of the map of the predicted class is covered with the mean colour
  of the pretraining images. The probability of the class must fall more than if a random fifth is
  covered, which has the same coarseness as the map.
- sanity: the rank correlation of the map with that of a head whose weights were shuffled, and with
  that of a network of random weights, must be small.

References
----------
V. Petsiuk et al., RISE: randomized input sampling for explanation, BMVC 2018 (deletion).
J. Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.

Run:      python benchmarks/explanations.py --data-root FOLDER [--strategy NAME] [--cache-dir DIR]
Cost:     three minutes of one core for three datasets.
Expected: the interval of the difference of the two falls lies above 0 everywhere; correlations are
          near 0 (at most 0.2).
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata, t
from shared_datasets import DATA

from strategies.core.context import RunContext, make_context
from strategies.core.metrics import LEVEL, Labels
from strategies.data.dataset import load_dataset
from strategies.data.decoding import Pixels
from strategies.models.backbone import load_backbone
from strategies.models.classifier import ImageClassifier, make_network, set_head
from strategies.models.explain.class_maps import class_maps
from strategies.models.features import eval_pixels
from strategies.registry import get_strategy

SETS = ("hymenoptera", "flowers5", "trash6")
SHARE = 0.2
N_RANDOM = 5
"""Random fifths that are covered of every image, whose falls are averaged."""
STRIDE = 32
Maps = NDArray[np.float32]


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per dataset."""
    args = _arguments(argv)
    print(
        "| dataset | images | accuracy | method | fall, top fifth | fall, random fifth "
        "| difference | correlation, shuffled head | correlation, random network |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    backbone = load_backbone(args.backbone, input_px=args.input_px)
    for name in args.sets:
        ctx = make_context(cache_dir=args.cache_dir, seed=args.seed)
        dataset = load_dataset(args.data_root / name, seed=args.seed, cache=ctx.cache)
        fitted = get_strategy(args.strategy)().fit(dataset, backbone, ctx)
        test = dataset.test or ()
        drawn = np.random.default_rng(args.seed).permutation(len(test))[: args.images]
        pixels = np.stack([eval_pixels(test[i].path, backbone) for i in drawn])
        labels = np.array([test[i].label for i in drawn])
        cells = measured(fitted, pixels, labels, ctx)
        print(f"| {name} | {len(drawn)} | {' | '.join(cells)} |", flush=True)


def measured(
    classifier: ImageClassifier, pixels: Pixels, labels: Labels, ctx: RunContext
) -> list[str]:
    """Return the cells of a row."""
    rng = np.random.default_rng(ctx.seed)
    before = classifier.classify(pixels)
    classes = before.argmax(axis=1)
    found = class_maps(classifier, pixels, classes)

    def fall(maps: Maps) -> NDArray[np.float64]:
        covered = classifier.classify(cover(pixels, maps, classifier.backbone.mean))
        rows = np.arange(len(classes))
        return np.asarray(before[rows, classes] - covered[rows, classes], dtype=np.float64)

    top = fall(found.maps)
    chance = np.mean([fall(random_maps(found.maps, rng)) for _ in range(N_RANDOM)], axis=0)
    others = (with_shuffled_head(classifier, rng), with_random_network(classifier, ctx))
    correlations = [
        rank_correlations(found.maps, class_maps(other, pixels, classes).maps) for other in others
    ]
    return [
        f"{100 * float((classes == labels).mean()):.1f}%",
        found.method,
        f"{100 * top.mean():.1f}",
        f"{100 * chance.mean():.1f}",
        _interval(100 * (top - chance)),
        *(_interval(c, "+.2f") for c in correlations),
    ]


def cover(pixels: Pixels, maps: Maps, mean: Sequence[float]) -> Pixels:
    """Return images whose positions of the largest map values, `SHARE` of them, are one colour."""
    covered = pixels.copy()
    n = round(SHARE * maps[0].size)
    for image, values in zip(covered, maps, strict=True):
        largest = np.argpartition(-values.ravel(), n - 1)[:n]
        image.reshape(-1, 3)[largest] = [round(255 * x) for x in mean]
    return covered


def random_maps(like: Maps, rng: np.random.Generator) -> Maps:
    """Return random maps of the size and the coarseness of a network's."""
    n, px, _ = like.shape
    coarse = rng.normal(size=(n, max(px // STRIDE, 2), max(px // STRIDE, 2))).astype(np.float32)
    resized = [Image.fromarray(c).resize((px, px), Image.Resampling.BILINEAR) for c in coarse]
    return np.stack([np.asarray(image) for image in resized])


def with_shuffled_head(classifier: ImageClassifier, rng: np.random.Generator) -> ImageClassifier:
    """Return the classifier with the weights of its head in random places."""
    other = _copy(classifier)
    head = classifier.network.head
    weight = head.weight.detach().cpu().numpy()
    shuffled = rng.permutation(weight.ravel()).reshape(weight.shape)
    set_head(other.network, shuffled, head.bias.detach().cpu().numpy())
    return other


def with_random_network(classifier: ImageClassifier, ctx: RunContext) -> ImageClassifier:
    """Return the classifier's head on a network of random weights."""
    with ctx.seeded():
        random = _empty(classifier)
    random.network.head.load_state_dict(classifier.network.head.state_dict())
    return random


def _copy(classifier: ImageClassifier) -> ImageClassifier:
    other = _empty(classifier)
    other.network.load_state_dict(classifier.network.state_dict())
    return other


def _empty(classifier: ImageClassifier) -> ImageClassifier:
    backbone = classifier.backbone.with_random_weights()
    n, pooling = len(classifier.classes), classifier.pooling
    network = make_network(backbone, classifier.depths, n, pooling)
    return replace(classifier, network=network.to(classifier.device).eval())


def rank_correlations(one: Maps, other: Maps) -> NDArray[np.float64]:
    """Return Spearman's rank correlation of every pair of maps, (n,)."""
    pairs = zip(one, other, strict=True)
    return np.array([np.corrcoef(rankdata(a), rankdata(b))[0, 1] for a, b in pairs])


def _interval(values: NDArray[np.float64], form: str = ".1f") -> str:
    """Return the mean over images with its interval."""
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    mean = float(values.mean())
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--strategy", default="linear_probe")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=150, help="test images per dataset")
    parser.add_argument("--input-px", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
