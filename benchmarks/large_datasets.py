"""Measure time and peak memory with 200,000 images: advice, near-duplicates, linear probe.

The images are copies with changes of those of one dataset, 64 px: a random crop of half to all of
the area, turned by up to 20 degrees, half of them flipped. Every twentieth is a planted copy of
the image before it instead: encoded again, smaller, brighter or turned by one degree. They are
made in a scratch folder, where they stay for the next call. Every figure is measured in a process
of its own, whose time and peak memory are read from the kernel.

Figures
-------
advise
    ``tl-advise`` of 5,000 and of all images, with an empty cache.
duplicates
    `find_matches` over all images, and the share of the planted copies that it finds of those that
    a comparison of the two images alone finds.
heads
    Cross-validation and fit of both linear heads on generated features of 1,280 columns, one row
    per image; then the accuracy with 20,000 rows, in memory and streamed.
run
    ``tl-auto run --strategy linear_probe --max-images 0 --trials 1``.

Run:      python benchmarks/large_datasets.py --source ../shared/data/flowers5 --scratch FOLDER
              [--n 200000] [--figures advise duplicates heads run]
Cost:     an hour on one core for all with 200,000 images, most of it for ``run``; 1 GB on disk.
Expected: docs/benchmarks/speed.md.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PROGRAM = "from advisor.cli.app import tl_{0}; tl_{0}()"
FEW, PX, N_COLUMNS, N_CLASSES = 5_000, 64, 1280, 10
CHANGES = ("encoded again", "smaller", "brighter", "turned by 1 degree")
PLANTED_EVERY = 20


def main(argv: Sequence[str] | None = None) -> None:
    """Make the copies that are not there yet, and measure the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--input-px", type=int, default=PX)
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    args = parser.parse_args(argv)
    roots = {n: args.scratch / f"copies-{n}" for n in (args.few, args.n)}
    for n, root in roots.items():
        if not root.exists():
            make_copies(args.source, root, n)
    for name in args.figures:
        FIGURES[name](roots, args.scratch / "cache", args.input_px)


def make_copies(source: Path, root: Path, n: int) -> None:
    """Fill class folders with `n` changed copies of the images of a folder, in turn."""
    rng = np.random.default_rng(0)
    unfinished = root.with_name(f"{root.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    folders = sorted(p for p in source.iterdir() if p.is_dir())
    for c, folder in enumerate(folders):
        (unfinished / folder.name).mkdir(parents=True)
        originals = []
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            with Image.open(path) as image:
                originals.append(ImageOps.fit(image.convert("RGB"), (2 * PX, 2 * PX)))
        previous = originals[0]
        for i in range(n * (c + 1) // len(folders) - n * c // len(folders)):
            if i % PLANTED_EVERY == PLANTED_EVERY - 1:
                change = CHANGES[i // PLANTED_EVERY % len(CHANGES)]
                _save_copy(previous, change, unfinished / folder.name / f"{i:06d}")
            else:
                previous = _drawn(originals[i % len(originals)], rng)
                previous.save(unfinished / folder.name / f"{i:06d}.png")
    unfinished.rename(root)


def _drawn(original: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a crop of half to all of the area, turned by up to 20 degrees, `PX` pixels."""
    turned = original.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
    side = 2 * PX * np.sqrt(rng.uniform(0.5, 1))
    left, top = rng.uniform(0, 2 * PX - side, 2)
    image = turned.resize((PX, PX), box=(left, top, left + side, top + side))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _save_copy(image: Image.Image, change: str, path: Path) -> None:
    """Save a planted copy under a path without a suffix."""
    if change == "encoded again":
        image.save(path.with_suffix(".jpg"), quality=75)
        return
    if change == "smaller":
        image = image.resize((PX * 9 // 10, PX * 9 // 10), Image.Resampling.BICUBIC)
    elif change == "brighter":
        image = image.point(lambda v: min(255, round(1.1 * v)))
    else:
        image = image.rotate(1, Image.Resampling.BICUBIC)
    image.save(path.with_suffix(".png"))


def measure(title: str, code: str, *arguments: object) -> None:
    """Run Python code in a process of its own; print its time, peak memory and last line."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{title} failed with exit code {process.returncode}:\n{output}")
    print(
        f"{title}: {time.perf_counter() - start:.0f} s, of the processor "
        f"{usage.ru_utime + usage.ru_stime:.0f} s; peak memory {usage.ru_maxrss // 1024} MB",
        flush=True,
    )


def advise(roots: dict[int, Path], cache: Path, px: int) -> None:
    """Measure ``tl-advise`` with an empty cache."""
    for n, root in roots.items():
        shutil.rmtree(cache, ignore_errors=True)
        options = ["--cache-dir", cache, "--input-px", px, "--quiet"]
        measure(f"tl-advise of {n} images", PROGRAM.format("advise"), root, *options)


def duplicates(roots: dict[int, Path], cache: Path, px: int) -> None:
    """Measure the search for near-duplicates over all images."""
    root = roots[max(roots)]
    _call("find_duplicates", "reading the images and finding duplicates", root)


def heads(roots: dict[int, Path], cache: Path, px: int) -> None:
    """Measure cross-validation and fit of linear heads with one generated row per image."""
    n = max(roots)
    for loss in ("softmax", "squared_hinge"):
        _call("fit_generated", f"{loss} head of {n} generated rows", loss, n, n // 10)


def run(roots: dict[int, Path], cache: Path, px: int) -> None:
    """Measure ``tl-auto run`` of one linear probe on all images, with the cache of ``advise``."""
    n = max(roots)
    out = cache.with_name("run")
    shutil.rmtree(out, ignore_errors=True)
    options = ["--strategy", "linear_probe", "--max-images", 0, "--trials", 1, "--time", "6h"]
    options += ["--no-control", "--quiet"]
    options += ["--cache-dir", cache, "--input-px", px, "--out", out]
    measure(f"tl-auto run of {n} images", PROGRAM.format("auto"), "run", roots[n], *options)


def _call(function: str, title: str, *arguments: object) -> None:
    """Measure a function of this file."""
    code = f"import runpy; runpy.run_path({__file__!r})[{function!r}]()"
    measure(title, code, *arguments)


def find_duplicates() -> None:
    """Find the duplicates of the images in ``sys.argv[1]``; say how long, and the recall."""
    from strategies.data.image import LabelledImage
    from strategies.data.inspection import read_images
    from strategies.data.near_duplicates import find_matches

    files = sorted(Path(sys.argv[1]).rglob("*.*"))
    classes = sorted({p.parent.name for p in files})
    images, _ = read_images([(p, classes.index(p.parent.name)) for p in files], 1)
    print(f"reading took {time.process_time():.0f} s", file=sys.stderr)
    start, cpu = time.perf_counter(), time.process_time()
    matches = find_matches(images)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found = {frozenset((images[m.first].path, images[m.second].path)) for m in matches}
    print(
        f"{len(matches)} matches in {seconds:.0f} s, of the processor {cpu_s:.0f} s; "
        f"peak memory {peak} MB",
        file=sys.stderr,
    )
    by_change: dict[str, list[tuple[LabelledImage, LabelledImage]]] = {c: [] for c in CHANGES}
    for before, copy in pairwise(images):
        i = int(copy.path.stem)
        if i % PLANTED_EVERY == PLANTED_EVERY - 1 and before.label == copy.label:
            by_change[CHANGES[i // PLANTED_EVERY % len(CHANGES)]].append((before, copy))
    for change, pairs in by_change.items():
        alone = [pair for pair in pairs[:2000] if find_matches(pair)]
        hits = sum(frozenset((a.path, b.path)) in found for a, b in alone)
        print(f"{change}: {hits} of {len(alone)} found", file=sys.stderr)


def fit_generated() -> None:
    """Fit a head to ``sys.argv[2]`` generated rows, and to ``sys.argv[3]`` in both ways."""
    from strategies.core.folds import fold_numbers
    from strategies.heads import cross_validation, principal_axes
    from strategies.heads.batches import Loss
    from strategies.heads.linear_head import MAX_CROSS_VALIDATED

    loss: Loss = "softmax" if sys.argv[1] == "softmax" else "squared_hinge"
    n, n_few = int(sys.argv[2]), int(sys.argv[3])
    x, labels = generated(n)
    start = time.process_time()
    folds = fold_numbers(labels, 0)
    path = cross_validation.RegularisationPath(loss)
    held_out = range(1 if n > MAX_CROSS_VALIDATED else int(folds.max()) + 1)
    scores = cross_validation.out_of_fold(
        x, labels, N_CLASSES, path, folds=folds, held_out=held_out
    )
    kept = np.isin(folds, list(held_out))
    found = cross_validation.best_of((s[kept] for s in scores), labels[kept], path.strengths)
    best = found.strengths[found.best]
    cross_validation.fit_head(x, labels, N_CLASSES, best, loss=loss)
    accuracy = 100 * found.correct[found.best].mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{loss}, {n} rows: {accuracy:.2f}% with strength {best:.1e}; "
        f"{time.process_time() - start:.0f} s of the processor; peak memory {peak} MB",
        file=sys.stderr,
    )
    for way, limit in (("in memory", n * N_COLUMNS), ("streamed", 0)):
        principal_axes.MAX_IN_MEMORY = limit
        start = time.process_time()
        head = cross_validation.fit_head(x[:n_few], labels[:n_few], N_CLASSES, best, loss=loss)
        unseen = slice(n_few, 3 * n_few)
        right = 100 * np.mean(head.scores(x[unseen]).argmax(axis=1) == labels[unseen])
        print(
            f"{loss}, {n_few} rows {way}: {right:.2f}% of {2 * n_few} others, "
            f"{time.process_time() - start:.1f} s of the processor",
            file=sys.stderr,
        )


def generated(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Generate overlapping classes in `N_COLUMNS` correlated columns, float32, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, N_CLASSES, n)
    centres = rng.normal(0, 0.25, (N_CLASSES, 64))
    mixing = rng.normal(size=(64, N_COLUMNS)).astype(np.float32)
    x = np.empty((n, N_COLUMNS), dtype=np.float32)
    for start in range(0, n, 10_000):
        part = slice(start, start + 10_000)
        hidden = centres[labels[part]] + rng.normal(size=(len(labels[part]), 64))
        x[part] = hidden.astype(np.float32) @ mixing
        x[part] += rng.normal(size=x[part].shape).astype(np.float32)
    return np.maximum(x, 0, out=x), labels


FIGURES = {"advise": advise, "duplicates": duplicates, "heads": heads, "run": run}


if __name__ == "__main__":
    main()
