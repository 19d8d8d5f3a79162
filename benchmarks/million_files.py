"""Measure time and memory of loading a dataset of a million files in a thousand class folders.

The files are hard links to at most 5,000 copied images (ext4 allows 65,000 links per file), made
in a scratch folder and removed afterwards. Listing, sampling, decoding, duplicate detection and
splitting run in a process of their own, whose peak resident memory is read from the kernel.

Run:      python benchmarks/million_files.py --images FOLDER... --scratch FOLDER
Cost:     about 2 minutes on 2 cores.
Expected: docs/benchmarks/data.md; `torch_imported` is false.
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
    """Make the links, measure in a new process, remove the links."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image folders")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the hard links")
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
    """Fill class folders with hard links to copies of the images of some folders, in turn."""
    root.mkdir(parents=True)
    found = (p for folder in folders for p in sorted(folder.rglob("*.*")) if p.is_file())
    seed = root / "seed"  # hard links cannot cross file systems, so each image is copied once
    seed.mkdir()
    sources = []
    for i, image in enumerate(islice(found, 5000)):
        sources.append(seed / f"{i:05d}{image.suffix}")
        shutil.copyfile(image, sources[-1])
    source_cycle = cycle(sources)
    for c in range(n_classes):
        folder = root / "data" / f"class_{c}"
        folder.mkdir(parents=True)
        for i in range(n_per_class):
            source = next(source_cycle)
            os.link(source, folder / f"image_{i}{source.suffix}")


def measure(root: Path, max_images: int) -> None:
    """Load the dataset; print the seconds it took and the peak memory of this process."""
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
