"""Explanations of predictions on new images, in files: activation maps, similar train images."""

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from advisor.deploy.labelled import LabelledFile
from advisor.deploy.predict import (
    CHUNK,
    Asked,
    Judge,
    Judgement,
    Predictions,
    Ranked,
    list_images,
    load_classifier,
    make_judge,
    not_calibrated,
    ranked,
)
from advisor.deploy.similar import Neighbour, nearest_files
from advisor.report.html import static_page
from advisor.report.maps.mistakes import MAX_NEW, N_NEIGHBOURS, Explanations, explain_mistakes
from advisor.report.maps.overlay import beside, draw_map, reduced, webp
from advisor.report.maps.words import PREDICTION_WORDS, map_words
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import IMAGES_FILE, image_rows
from advisor.types.evaluation import DatasetEvaluation
from strategies.core.atomic_files import atomic_file, write_text
from strategies.core.context import RunContext
from strategies.core.devices import predict_precision
from strategies.core.errors import DataError, StorageError
from strategies.core.prefetch import chunks, prefetch
from strategies.core.progress import ignore
from strategies.data.decoding import Pixels, UnreadableImage, read_image
from strategies.data.image import Skipped, shown
from strategies.data.inspection import read_images
from strategies.data.transforms import EvaluationCrop
from strategies.models.classifier import ImageClassifier
from strategies.models.explain.class_maps import Method, class_maps
from strategies.models.explain.nearest import descriptors
from strategies.models.features import INFERENCE_BATCH

PAGE_FILE, JSON_FILE = "index.html", "explanations.json"
SIDE_PX, PAGE_PX, NEIGHBOUR_PX = 448, 176, 64
"""Longest side of an image in its own file, on the page, and of a train image."""
MOST_ON_PAGE = 150
"""The page shows the first images, so that it stays small; there are files for all of them."""
TOP = 3
JPEG_QUALITY = 88


@dataclass(frozen=True)
class ExplainedImage:
    """An explained image.

    Attributes
    ----------
    file
        Name of its file in the folder of the explanations.
    classes
        All classes with probabilities, most probable first; the first one is explained.
    box
        What the network saw of it: (left, top, right, bottom) in its pixels.
    seen_share
        The share of its area in the box.
    thumb, drawn
        Image and map as WebP, for the page; None if the page does not show it.
    """

    path: Path
    file: str
    classes: Ranked
    box: tuple[float, ...]
    seen_share: float
    thumb: bytes | None
    drawn: bytes | None
    neighbours: tuple[Neighbour, ...] = ()
    judgement: Judgement | None = None


@dataclass(frozen=True)
class _Decoded:
    """An image that was read: its crop for the network, a reduced copy, and its size."""

    path: Path
    pixels: Pixels
    small: Image.Image
    size: tuple[int, int]


@dataclass
class _Folder:
    """The folder that explanations are written to, and what is known for its page so far."""

    path: Path
    json: BinaryIO
    method: Method | None = None
    n_images: int = 0
    on_page: list[ExplainedImage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, images: Sequence[ExplainedImage]) -> None:
        """Write the records of some images, and keep those that the page shows."""
        for image in images:
            self.json.write(b",\n" if self.n_images else b"\n")
            self.json.write(json.dumps(_record(image), ensure_ascii=False).encode())
            self.n_images += 1
        self.on_page += (image for image in images if image.thumb is not None)


def check_out(out: Path, given: Iterable[Path] = ()) -> None:
    """Refuse a folder for explanations that is in use, or that is searched for images itself.

    Raises
    ------
    StorageError
        If it is a file or not empty, or lies in one of the given folders.
    """
    if out.exists() and not out.is_dir():
        raise StorageError(f"--explain {shown(out)} is a file. Give a new or empty folder.")
    if out.is_dir() and any(out.iterdir()):
        raise StorageError(f"--explain {shown(out)} is not empty. Give a new or empty folder.")
    for folder in given:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise StorageError(
                f"--explain {shown(out)} lies in {shown(folder)}, whose images are explained. "
                "Give a folder outside it."
            )


def explain(
    run: Path, given: Iterable[Path], out: Path, ctx: RunContext, asked: Asked | None = None
) -> Iterator[Predictions]:
    """Classify images as `predict` does, and write an explanation of each to a folder.

    An explanation shows where the image speaks for the predicted class, beside the image
    (``00001-NAME.jpg``), and the most similar train images of the run. ``index.html`` shows the
    first ones, ``explanations.json`` has all. No more than one batch of images is held in memory.

    Parameters
    ----------
    run
        A run folder, or the classifier folder in it. Without the run's train images there are no
        similar images, and a note says so.
    out
        A new or empty folder, see `check_out`.
    asked
        As in `predict`.

    Raises
    ------
    StorageError
        If there is no readable classifier, or the folder is in use or cannot be written.
    DataError
        If there is no image.
    """
    check_out(out)
    classifier = load_classifier(run, ctx.device)
    judge = make_judge(classifier, asked)
    ctx = replace(ctx, precision=predict_precision(ctx.device))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / JSON_FILE) as file:
            folder, skipped = _Folder(out, file), list[Skipped]()
            file.write(b'{"run": ' + json.dumps(shown(run)).encode() + b', "images": [')
            train = _train_files(run, folder, ctx)
            numbered = enumerate(list_images(given), start=1)
            done = 0
            while chunk := [(n, path) for n, (path, _) in islice(numbered, CHUNK)]:
                images, bad = _explain_chunk(classifier, judge, chunk, train, folder, ctx)
                done += len(chunk)
                ctx.reporter.on_progress("explanations", done, 0)
                skipped += bad
                rows = tuple((i.path, i.classes) for i in images)
                judged = tuple(i.judgement for i in images if i.judgement is not None)
                judgements = None if judge is None else judged
                reason = not_calibrated(classifier)
                yield Predictions(rows, tuple(bad), judgements, classifier.reliability, reason)
            if not done:
                raise DataError("There is no image in the given files and folders.")
            quarantine = [{"path": shown(s.path), "reason": s.reason} for s in skipped]
            rest = {"method": folder.method, "notes": folder.notes, "quarantine": quarantine}
            file.write(b"\n], " + json.dumps(rest, ensure_ascii=False)[1:].encode() + b"\n")
        write_text(out / PAGE_FILE, _page(run, folder))
    except OSError as error:
        raise StorageError(f"{shown(out)} cannot be written: {error}") from error


def explain_evaluation(found: DatasetEvaluation, ctx: RunContext) -> Explanations:
    """Explain the mistakes that an evaluation names, with train images of the run.

    Of many train images, a random sample of `MAX_NEW` is compared.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    """
    classifier = load_classifier(found.run, ctx.device)
    number = {name: i for i, name in enumerate(classifier.classes)}
    files = [(f.path, number[f.label]) for f in _train_rows(found.run) if f.path.is_file()]
    drawn = np.random.default_rng(ctx.seed).permutation(len(files))[:MAX_NEW]
    train, _ = read_images([files[i] for i in drawn], ctx.n_workers, ctx.cache)
    explained = explain_mistakes(classifier, found.scores.mistakes, train, ctx)
    if not explained.by_path or len(drawn) == len(files):
        return explained
    note = f"Similar images are those among {len(drawn):,} of the {len(files):,} train images."
    return replace(explained, notes=(*explained.notes, note))


def _train_rows(run: Path) -> list[LabelledFile]:
    """Return the train images of a run; none if the run does not list its images."""
    if not (run / IMAGES_FILE).is_file():
        return []
    rows = image_rows(RunDir(run))
    return [LabelledFile(r.path, r.label, r.split) for r in rows if r.split == "train"]


def _train_files(run: Path, folder: _Folder, ctx: RunContext) -> tuple[LabelledFile, ...]:
    """Return the train images of a run that are still there; note if some are not."""
    found = _train_rows(run)
    there = tuple(file for file in found if file.path.is_file())
    if len(there) < len(found) or not found:
        known = f"{len(found) - len(there):,} of its {len(found):,} train images are missing"
        folder.notes.append(
            f"Similar images are searched in what is left of the run: {known}."
            if there
            else "There are no similar images: the run's train images are missing or not known."
        )
        ctx.reporter.on_note(folder.notes[-1])
    return there


def _explain_chunk(
    classifier: ImageClassifier,
    judge: Judge | None,
    chunk: Sequence[tuple[int, Path | int]],
    train: Sequence[LabelledFile],
    folder: _Folder,
    ctx: RunContext,
) -> tuple[list[ExplainedImage], list[Skipped]]:
    """Explain some files; return the explained images and the files that cannot be read."""
    crop = classifier.backbone.evaluation_crop
    found: list[ExplainedImage] = []
    skipped: list[Skipped] = []
    features: list[NDArray[np.float32]] = []

    def read(part: Sequence[tuple[int, Path | int]]) -> list[tuple[int, _Decoded | Skipped]]:
        return [(number, _decoded(Path(str(path)), crop)) for number, path in part]

    for part in prefetch(read, chunks(chunk, INFERENCE_BATCH), ctx.n_workers):
        skipped += (image for _, image in part if isinstance(image, Skipped))
        readable = [(n, image) for n, image in part if isinstance(image, _Decoded)]
        if readable:
            pixels = np.stack([image.pixels for _, image in readable])
            (outputs,) = classifier.output_batches([pixels], ctx.precision)
            probabilities = outputs.probabilities
            judgements = judge(outputs) if judge else [None] * len(pixels)
            maps = class_maps(classifier, pixels, probabilities.argmax(axis=1))
            folder.method = maps.method
            features.append(maps.features)
            for (number, image), row, values, judgement in zip(
                readable, probabilities, maps.with_bias(), judgements, strict=True
            ):
                on_page = folder.n_images + len(found) < MOST_ON_PAGE
                names = ranked(classifier.classes, row)
                written = _written(number, image, names, values, crop, folder, on_page=on_page)
                found.append(replace(written, judgement=judgement))
    if found and train:
        own = descriptors(np.concatenate(features), classifier, "classifier")
        paths = [image.path for image in found]
        quiet = replace(ctx, reporter=replace(ctx.reporter, on_progress=ignore))
        near = nearest_files(paths, own, train, classifier, quiet, k=N_NEIGHBOURS)
        found = [
            replace(image, neighbours=neighbours)
            for image, (_, neighbours) in zip(found, near.found, strict=True)
        ]
    folder.add(found)
    return found, skipped


def _decoded(path: Path, crop: EvaluationCrop) -> _Decoded | Skipped:
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return Skipped(path, str(error))
    return _Decoded(path, crop.pixels(image), reduced(image, SIDE_PX), image.size)


def _written(
    number: int,
    image: _Decoded,
    classes: Ranked,
    values: NDArray[np.float32],
    crop: EvaluationCrop,
    folder: _Folder,
    *,
    on_page: bool,
) -> ExplainedImage:
    """Write the file of one image, and return what the page and the JSON say of it."""
    drawn = draw_map(image.small, values, crop)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", image.path.stem)[:60]
    name = f"{number:05d}-{stem}.jpg"
    stream = io.BytesIO()
    sheet = beside(image.small, drawn, PREDICTION_WORDS)
    sheet.save(stream, "JPEG", quality=JPEG_QUALITY)
    (folder.path / name).write_bytes(stream.getvalue())
    width, height = image.size
    left, top, right, bottom = box = crop.seen(width, height).in_image
    return ExplainedImage(
        path=image.path,
        file=name,
        classes=classes,
        box=tuple(round(x, 1) for x in box),
        seen_share=round((right - left) * (bottom - top) / (width * height), 4),
        thumb=webp(reduced(image.small, PAGE_PX)) if on_page else None,
        drawn=webp(reduced(drawn, PAGE_PX)) if on_page else None,
    )


def _record(image: ExplainedImage) -> dict[str, Any]:
    return {
        "path": shown(image.path),
        "file": image.file,
        "classes": [{"class": c, "probability": p} for c, p in image.classes],
        "explained_class": image.classes[0][0],
        "unknown": None if image.judgement is None else image.judgement.unknown,
        "seen_box": image.box,
        "seen_share": image.seen_share,
        "similar": [
            {"path": shown(n.path), "class": n.label, "similarity": n.similarity}
            for n in image.neighbours
        ],
    }


def _page(run: Path, folder: _Folder) -> str:
    """Return the page of the first images."""
    thumbs: dict[str, str] = {}
    for image in folder.on_page:
        for n in image.neighbours:
            if shown(n.path) not in thumbs:
                with contextlib.suppress(UnreadableImage):
                    small = reduced(read_image(n.path), NEIGHBOUR_PX)
                    thumbs[shown(n.path)] = _base64(webp(small))
    images = [
        {
            "image": image,
            "path": shown(image.path),
            "thumb": _base64(image.thumb or b""),
            "drawn": _base64(image.drawn or b""),
            "nearest": [{"path": shown(n.path), "label": n.label} for n in image.neighbours],
        }
        for image in folder.on_page
    ]
    return static_page(
        "explanations.html",
        run_name=shown(run),
        n_images=folder.n_images,
        images=images,
        legend="" if folder.method is None else map_words(folder.method, PREDICTION_WORDS),
        notes=folder.notes,
        thumbs=thumbs,
        top=TOP,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
