"""Images for the HTML page: t-SNE map, thumbnails, and images named by findings."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from advisor.measure.profile import sample
from advisor.report.maps.mistakes import Explanations
from advisor.report.maps.overlay import reduced, webp
from advisor.types.advice import Advice, Finding
from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Evaluation, Labels, Scores
from strategies.data.dataset import Dataset
from strategies.data.decoding import UnreadableImage, read_image
from strategies.data.image import Split, groups_of, labels_of, shown
from strategies.heads.cross_validation import cross_validate
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features

MAX_ON_MAP = 1000
"""Maximum number of points: more would overlap, and their thumbnails would fill the page."""
FEWEST_ON_MAP = 5
MAX_EXAMPLES_SHOWN = 12
SIDES_PX = (88, 64, 48, 32)
"""Candidate sides of thumbnails: the largest with which all fit into `BUDGET_BYTES` is used."""
BUDGET_BYTES = 2_200_000
"""Budget of all encoded thumbnails; base64 adds a third, and the page must stay below 5 MB."""
PERPLEXITY, MAX_AXES = 30.0, 50


@dataclass(frozen=True)
class Point:
    """An image on the map.

    Attributes
    ----------
    guess
        Class predicted by a linear probe that was fitted without this image.
    x, y
        t-SNE coordinates in [0, 1], without unit.
    """

    path: str
    label: str
    guess: str
    x: float
    y: float


@dataclass(frozen=True)
class Gallery:
    """Map and thumbnails of an HTML page.

    Attributes
    ----------
    points
        The map of the images; empty if there are too few.
    depth
        Depth of the activations that the map is computed from; 0: all depths.
    n_images
        Number of images of the dataset, of which the map may be a sample.
    thumbs
        WebP thumbnails by path as displayed; an image deleted since has none.
    named
        Images named by the examples of findings, by (index of finding, index of example).
    explained
        Explanations of the mistakes on test, with thumbnails of their own.
    """

    points: tuple[Point, ...] = ()
    depth: int = 0
    n_images: int = 0
    thumbs: Mapping[str, bytes] = field(default_factory=dict)
    named: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    explained: Explanations = field(default_factory=Explanations)


def make_gallery(
    advice: Advice,
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
) -> Gallery:
    """Compute the map and the thumbnails of an HTML page, from cached features.

    Parameters
    ----------
    dataset
        The dataset that the advice was computed from.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    depth = advice.profile.best_svm.depth
    points = _map(advice, dataset, backbone, ctx)
    files = {shown(p.path): p.path for p in dataset.fit_split}
    named = images_named(advice.findings, files)
    wanted = dict.fromkeys(path for paths in named.values() for path in paths)
    wanted |= dict.fromkeys(p.path for p in points)
    paths = {name: files.get(name, Path(name)) for name in wanted}
    return Gallery(points, depth, len(dataset.fit_split), make_thumbs(paths, ctx.n_workers), named)


def with_mistakes(gallery: Gallery, test: Evaluation, n_workers: int) -> Gallery:
    """Add thumbnails of the misclassified test images that the evaluation names (a few)."""
    known = {**gallery.thumbs, **gallery.explained.thumbs}
    paths = {m.path: Path(m.path) for m in test.mistakes if m.path not in known}
    return replace(gallery, thumbs={**known, **make_thumbs(paths, n_workers)})


def images_named(
    findings: Sequence[Finding], names: Collection[str]
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Find the paths in the examples of findings, preferring the longest known path.

    Returns
    -------
    Paths by (index of finding, index of example); examples without a path are left out.
    """
    known = set(names)
    lengths = sorted({len(name) for name in known}, reverse=True)
    shortest = lengths[-1] if lengths else 0
    starts = {name[:shortest] for name in known}
    found: dict[tuple[int, int], tuple[str, ...]] = {}
    for f, finding in enumerate(findings):
        for e, line in enumerate(finding.examples[:MAX_EXAMPLES_SHOWN]):
            at, paths = 0, []
            while at < len(line):
                name = None
                if line[at : at + shortest] in starts:
                    ends = (line[at : at + n] for n in lengths if at + n <= len(line))
                    name = next((end for end in ends if end in known), None)
                if name is not None:
                    paths.append(name)
                at += len(name or " ")
            if paths:
                found[f, e] = tuple(paths)
    return found


def make_thumbs(paths: Mapping[str, Path], n_workers: int = 2) -> dict[str, bytes]:
    """Return WebP thumbnails, re-encoded so that they carry no metadata of the files.

    A file that has become unreadable has no thumbnail.
    """
    with ThreadPoolExecutor(n_workers) as pool:
        images = dict(zip(paths, pool.map(_reduced, paths.values()), strict=True))
    for side in SIDES_PX:
        thumbs = {name: webp(reduced(image, side)) for name, image in images.items() if image}
        if sum(map(len, thumbs.values())) <= BUDGET_BYTES:
            return thumbs
    return dict(_within_budget(thumbs.items(), BUDGET_BYTES))


def _within_budget(
    thumbs: Iterable[tuple[str, bytes]], budget: int
) -> Iterable[tuple[str, bytes]]:
    for name, data in thumbs:
        budget -= len(data)
        if budget < 0:
            return
        yield name, data


def _reduced(path: Path) -> Image.Image | None:
    try:
        return reduced(read_image(path), SIDES_PX[0])
    except UnreadableImage:
        return None


def _map(
    advice: Advice, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> tuple[Point, ...]:
    """Compute a t-SNE map of a sample of the measured images."""
    measured = sample(dataset.fit_split, ctx.seed)
    if len(measured) < FEWEST_ON_MAP:
        return ()
    images = tuple(measured[row] for row in sample_rows(labels_of(measured), ctx.seed))
    features = extract_features(images, backbone, ctx)
    depth = advice.profile.best_svm.depth
    depths = range(1, backbone.n_depths + 1) if depth == 0 else [depth]
    places = lay_out(features.at(depths), 0)
    guesses = _predictions(features.pooled[-1], images, dataset.n_classes, ctx)
    return tuple(
        Point(
            shown(image.path),
            dataset.classes[image.label],
            dataset.classes[guess],
            round(float(place[0]), 4),
            round(float(place[1]), 4),
        )
        for image, guess, place in zip(images, guesses, places, strict=True)
    )


def _predictions(penultimate: Scores, images: Split, n_classes: int, ctx: RunContext) -> Labels:
    """Predict the class of every image by a linear probe that was fitted without it."""
    labels = labels_of(images)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(images))
    found = cross_validate(penultimate, labels, n_classes, folds=folds, device=ctx.head_device)
    return np.asarray(found.scores.argmax(axis=1), dtype=np.int64)


def sample_rows(labels: Labels, seed: int) -> Labels:
    """Draw at most `MAX_ON_MAP` rows, stratified by class; the result is sorted."""
    if len(labels) <= MAX_ON_MAP:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        quantile[rows] = np.arange(len(rows)) / len(rows)
    return np.sort(np.argsort(quantile, kind="stable")[:MAX_ON_MAP])


def lay_out(x: Scores, seed: int) -> Scores:
    """Embed rows (n, d) in the unit square by t-SNE on their principal components.

    Neighbourhoods are meaningful; distances between clusters are not.

    References
    ----------
    L. van der Maaten, G. Hinton, Visualizing data using t-SNE, 2008.
    """
    n = len(x)
    centred = x - x.mean(axis=0)
    centred = centred / max(float(centred.std()), 1e-9)
    # Noise separates duplicates, and gives identical images principal components.
    centred = centred + np.random.default_rng(seed).normal(0, 1e-3, centred.shape)
    axes = PCA(min(MAX_AXES, n, x.shape[1]), svd_solver="randomized", random_state=seed)
    on_axes = axes.fit_transform(centred.astype(np.float64))
    perplexity = min(PERPLEXITY, max((n - 1) / 3, 1.0))
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        on_axes.astype(np.float32)
    )
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: Scores = (places - low) / np.maximum(high - low, 1e-9)
    return scaled
