"""What a page shows of misclassified images: why they were, and what they resemble in training."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from advisor.report.maps.overlay import draw_map, reduced, webp
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import TransferError
from strategies.core.metrics import Mistake
from strategies.core.prefetch import chunks
from strategies.data.decoding import UnreadableImage, read_image
from strategies.data.image import LabelledImage, Split, shown
from strategies.models.classifier import ImageClassifier
from strategies.models.explain.class_maps import Method, class_maps
from strategies.models.explain.nearest import NearestRows, classifier_rows, descriptors
from strategies.models.features import not_cached, pooled_features
from strategies.registry import STRATEGIES

N_NEIGHBOURS = 3
SIDE_PX, NEIGHBOUR_PX = 144, 64
BUDGET_BYTES = 600_000
"""Budget of the images of the mistakes, encoded. With `gallery.BUDGET_BYTES` and the scripts, the
page stays below 5 MB."""
SIDES_PX = (144, 112, 88, 64)
MAX_NEW = 1000
"""Train images that are passed through the network only to be compared. Images whose features are
cached are compared besides."""
AT_ONCE, MAPPED_AT_ONCE = 32, 8
"""Train images, and mistakes, between two looks at the clock."""
NO_TIME = "The mistakes are not explained: there was no time, or they cannot be read."
SEARCH_SHARE = 0.5
"""Share of the time after the maps in which train images are searched; then they are drawn."""


@dataclass(frozen=True)
class NearImage:
    """A train image that is among the most similar ones."""

    path: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Explained:
    """Why an image was misclassified: WebP of its map, and the most similar train images."""

    drawn: bytes
    nearest: tuple[NearImage, ...] = ()


@dataclass(frozen=True)
class Explanations:
    """Explanations of the mistakes that an evaluation names.

    Attributes
    ----------
    by_path
        Those of every mistake that there was time for, by path as displayed.
    thumbs
        WebP thumbnails of these mistakes and of the train images, by path as displayed.
    method
        How the maps were computed; None if there are none.
    notes
        What is missing or was sampled, a sentence each.
    """

    by_path: Mapping[str, Explained] = field(default_factory=dict)
    thumbs: Mapping[str, bytes] = field(default_factory=dict)
    method: Method | None = None
    notes: tuple[str, ...] = ()

    @property
    def drawn(self) -> dict[str, str]:
        """The maps in base64, by path of the mistake."""
        return {path: base64.b64encode(e.drawn).decode() for path, e in self.by_path.items()}


@dataclass(frozen=True)
class _Mapped:
    """A mistake with its reduced image and its drawn map."""

    mistake: Mistake
    image: Image.Image
    drawn: Image.Image


def explain_mistakes(
    classifier: ImageClassifier, mistakes: Sequence[Mistake], train: Split, ctx: RunContext
) -> Explanations:
    """Explain misclassified images by maps (predicted rather than true class) and train images.

    Maps come first, then similar train images, as long as there is time. What is left out stands
    in the notes.

    Parameters
    ----------
    train
        The images that the classifier was fitted to, whose labels number its classes.
    ctx
        Its deadline ends the work, up to some images that have been begun.
    """
    if not mistakes:
        return Explanations()
    try:
        mapped, features, method = _mapped(classifier, mistakes, ctx)
        if not mapped:
            return Explanations(notes=(NO_TIME,))
        notes = []
        if len(mapped) < len(mistakes):
            notes.append(
                f"Maps of {len(mapped)} of {len(mistakes)} images: the others cannot be read, or "
                "there was no time."
            )
        nearest, note = _nearest(classifier, features, train, ctx)
    except TransferError as error:
        return Explanations(notes=(f"The mistakes are not explained. {error}",))
    near = nearest or [[] for _ in mapped]
    paths = dict.fromkeys(image.path for images in near for image, _ in images)
    pictures = _pictures(paths, NEIGHBOUR_PX, ctx)
    if len(pictures) < len(paths):
        notes.append(
            f"Thumbnails of {len(pictures)} of {len(paths)} similar images: the others cannot be "
            "read, or there was no time."
        )
    encoded, thumbs = _encoded(mapped, pictures)
    found = {
        m.mistake.path: Explained(
            drawn,
            tuple(
                NearImage(shown(i.path), classifier.classes[i.label], similarity)
                for i, similarity in images
            ),
        )
        for m, drawn, images in zip(mapped, encoded, near, strict=True)
    }
    return Explanations(found, thumbs, method, (*notes, *([note] if note else [])))


def _mapped(
    classifier: ImageClassifier, mistakes: Sequence[Mistake], ctx: RunContext
) -> tuple[list[_Mapped], Rows, Method | None]:
    """Return the mistakes with their maps, their features, and how the maps were computed."""
    number = {name: i for i, name in enumerate(classifier.classes)}
    crop, found, features = classifier.backbone.evaluation_crop, [], []
    method: Method | None = None
    for chunk in chunks(mistakes, MAPPED_AT_ONCE):
        if ctx.seconds_left() <= 0:
            break
        with ThreadPoolExecutor(ctx.n_workers) as pool:
            images = list(pool.map(_read, (Path(m.path) for m in chunk)))
        readable = [(m, i) for m, i in zip(chunk, images, strict=True) if i is not None]
        if not readable:
            continue
        guesses, labels = (
            np.array([number[name] for name in names])
            for names in zip(*((m.predicted, m.label) for m, _ in readable), strict=True)
        )
        pixels = np.stack([crop.pixels(image) for _, image in readable])
        maps = class_maps(classifier, pixels, guesses, labels)
        method = maps.method
        features.append(maps.features)
        for (mistake, image), values in zip(readable, maps.with_bias(), strict=True):
            small = reduced(image, SIDE_PX)
            found.append(_Mapped(mistake, small, draw_map(small, values, crop)))
    width = classifier.network.head.in_features
    rows = np.concatenate(features) if features else np.empty((0, width), np.float32)
    return found, rows, method


def _nearest(
    classifier: ImageClassifier, features: Rows, train: Split, ctx: RunContext
) -> tuple[list[list[tuple[LabelledImage, float]]], str]:
    """Return the nearest train images to each row, with similarities, and what to say about it."""
    left_out = "Similar train images are left out: there was no time to compare them."
    if not train:
        return [], "Similar train images are left out: the train images of the run are not there."
    reserved_s = (1 - SEARCH_SHARE) * ctx.seconds_left()  # for the thumbnails
    rows, order = _search_order(classifier, train, ctx)
    nearest, known = NearestRows(descriptors(features, classifier, "classifier"), N_NEIGHBOURS), 0
    for part in chunks(order, AT_ONCE):
        if np.isfinite(reserved_s) and ctx.seconds_left() <= max(reserved_s, 0):
            break
        nearest.add(descriptors(rows(tuple(part)), classifier, "classifier"))
        known += len(part)
    if known < N_NEIGHBOURS:
        return [], left_out
    found = [
        [(order[place], float(value)) for place, value in zip(places, values, strict=True)]
        for places, values in zip(nearest.places.tolist(), nearest.similarities, strict=True)
    ]
    note = ""
    if known < len(train):
        note = f"Similar images are those among {known:,} of the {len(train):,} train images."
    return found, note


def _search_order(
    classifier: ImageClassifier, train: Split, ctx: RunContext
) -> tuple[Callable[[Split], Rows], Split]:
    """Return what computes the features of train images, and these in the order of the search.

    Images whose features the run has computed come first; the others are in random order, so that
    those that there is time for are a fair sample.
    """
    strategy = STRATEGIES.get(classifier.strategy)
    quiet = replace(
        ctx, reporter=replace(ctx.reporter, on_progress=lambda *_: None), deadline_s=None
    )
    backbone, depths = classifier.backbone, classifier.depths
    cached: list[LabelledImage] = []
    rows = classifier_rows(classifier, quiet)
    if strategy is not None and not strategy.trains_network and classifier.pooling == "mean":
        # The body is the pretrained one, whose features the run has computed for its heads.
        new = {image.digest for image in not_cached(train, backbone, ctx)}
        cached = [image for image in train if image.digest not in new]
        if cached:

            def rows(images: Split) -> Rows:
                return pooled_features(images, backbone, quiet, depths)

    names = {image.path for image in cached}
    others = [image for image in train if image.path not in names]
    drawn = np.random.default_rng(ctx.seed).permutation(len(others))[:MAX_NEW]
    return rows, (*cached, *(others[i] for i in drawn))


def _pictures(paths: Iterable[Path], side: int, ctx: RunContext) -> dict[str, Image.Image]:
    """Return reduced images by path as displayed, of the files that there is time for."""
    found: dict[str, Image.Image] = {}
    with ThreadPoolExecutor(ctx.n_workers) as pool:
        for chunk in chunks(list(paths), MAPPED_AT_ONCE):
            if ctx.seconds_left() <= 0:
                break
            for path, image in zip(chunk, pool.map(_read, chunk), strict=True):
                if image is not None:
                    found[shown(path)] = reduced(image, side)
    return found


def _encoded(
    mapped: Sequence[_Mapped], pictures: Mapping[str, Image.Image]
) -> tuple[list[bytes], dict[str, bytes]]:
    """Return the drawn maps and all thumbnails, as large as the budget allows."""
    for side in SIDES_PX:
        drawn = [webp(reduced(m.drawn, side)) for m in mapped]
        thumbs = {m.mistake.path: webp(reduced(m.image, side)) for m in mapped}
        small = min(side, NEIGHBOUR_PX)
        thumbs |= {name: webp(reduced(image, small)) for name, image in pictures.items()}
        if sum(map(len, (*drawn, *thumbs.values()))) <= BUDGET_BYTES:
            break
    return drawn, thumbs


def _read(path: Path) -> Image.Image | None:
    try:
        return read_image(path)
    except UnreadableImage:
        return None
