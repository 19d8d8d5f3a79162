"""Time and memory until measuring begins on a million files in a thousand class folders.

The files are hard links to the images of some folders (ext4 allows 65,000 links a file), made in
a scratch folder and removed again. Listing, sampling, decoding, duplicates and the split run in a
process of their own, whose peak resident memory is read from the kernel.

Run:   python benchmarks/million_files.py --pictures IMAGES... --scratch FOLDER
Cost:  about 2 minutes on 2 cores; no copy of an image is made.
See README-data.md for the result.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> None:
    """Make the links, measure in a fresh process, remove the links."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--max-images", type=int, default=5000)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        measure(args.scratch, args.max_images)
        return
    root = args.scratch / "million-files"
    make_links(root, args.images, args.classes, args.per_class)
    try:
        command = [sys.executable, __file__, "--measure", "--images", "."]
        command += ["--scratch", str(root), "--max-images", str(args.max_images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(done.stdout.strip())
    finally:
        shutil.rmtree(root)


def make_links(root: Path, folders: list[Path], n_classes: int, n_per_class: int) -> None:
    """Fill class folders with hard links to the images of some folders, in turn."""
    root.mkdir(parents=True)
    found = (p for folder in folders for p in sorted(folder.rglob("*.*")) if p.is_file())
    seed = root / "seed"  # hard links do not cross file systems: one copy of each image does
    seed.mkdir()
    sources = []
    for i, image in enumerate(islice(found, 5000)):
        sources.append(seed / f"{i:05d}{image.suffix}")
        shutil.copyfile(image, sources[-1])
    turn = cycle(sources)
    for c in range(n_classes):
        folder = root / "data" / f"class_{c}"
        folder.mkdir(parents=True)
        for i in range(n_per_class):
            source = next(turn)
            os.link(source, folder / f"image_{i}{source.suffix}")


def measure(root: Path, max_images: int) -> None:
    """Print how long it takes until measuring can begin, and the peak memory of this process."""
    start = time.monotonic()
    from strategies.data.dataset import load_dataset

    dataset = load_dataset(root / "data", max_images=max_images)
    record = {
        "files": sum(dataset.n_by_class),
        "classes": dataset.n_classes,
        "read": len(dataset.fit_split) + len(dataset.test or ()),
        "seconds_until_measuring": round(time.monotonic() - start, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "torch_imported": "torch" in sys.modules,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
