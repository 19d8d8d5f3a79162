"""Nine ratios of time and memory: this program against the least that its work must cost.

Every figure is a ratio of two things measured in turn in one run, so it depends little on the
machine; printed are the median and the range over the repetitions. The plain script that figures 1
and 8 compare with is `plain` below: a timm network, torch's DataLoader, float32, nothing else. Its
weights are random, so it is spared reading them.

Run:   python benchmarks/speed.py [--figures 1 3 7] [--repeat 5] [--pictures FOLDER]
Guard: python benchmarks/speed.py --guard     (`make bench`: digits, generous bounds, about 2 min)
Cost:  20 minutes on 2 quiet cores for all nine; figures 5 and 6 make 50,000 hard links.
See README.md for the result.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "from advisor.cli import tl_{0}; tl_{0}()"
N, N_NEW = 1000, 100


@dataclass(frozen=True)
class Figure:
    """A ratio of two measurements, and the bar that it is held against."""

    what: str
    bar: float
    measure: Callable[["Bench"], Iterator[tuple[float, float]]]
    at_least: bool = False


@dataclass(frozen=True)
class Bench:
    """Where the pictures are, where there is room, and how often to measure."""

    pictures: Path
    scratch: Path
    repeat: int
    n: int = N

    def folder(self, n: int, *, skip: int = 0) -> Path:
        """Return a folder of class folders with copies of `n` pictures, as even as they are."""
        root = self.scratch / f"pictures-{n}-{skip}"
        if not root.exists():
            copy_pictures(self.pictures, root, n, skip)
        return root

    @contextmanager
    def fresh(self, name: str) -> Iterator[Path]:
        """Lend a folder that is empty before and gone afterwards."""
        path = Path(tempfile.mkdtemp(prefix=name, dir=self.scratch))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def advise(self, data: Path, cache: Path, *more: str) -> "Spent":
        """Run ``tl-advise`` in a process of its own."""
        return run(PROGRAM.format("advise"), data, "--quiet", "--cache-dir", cache, *more)

    def plain(self, data: Path) -> float:
        """Run the plain script in a process of its own."""
        return run(f"import runpy; runpy.run_path({__file__!r})['plain']()", data).seconds


@dataclass(frozen=True)
class Spent:
    """What a process took: wall-clock seconds, peak resident memory in MB, and what it said."""

    seconds: float
    peak_mb: float
    said: str


def run(code: str, *arguments: object) -> Spent:
    """Run Python code in a process of its own and measure it."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        said = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{said}")
    return Spent(seconds, usage.ru_maxrss / 1024, said)


def copy_pictures(source: Path, root: Path, n: int, skip: int = 0) -> None:
    """Copy `n` pictures of a folder of class folders, the same number of every class."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for i, folder in enumerate(classes):
        (root / folder.name).mkdir(parents=True)
        share, start = n // len(classes) + (i < n % len(classes)), skip // len(classes)
        for path in sorted(folder.iterdir())[start : start + share]:
            shutil.copyfile(path, root / folder.name / path.name)


def plain() -> None:
    """Compute features as a careful person would without this program: ``sys.argv[1]``."""
    import timm
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    net = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    pictures = ImageFolder(sys.argv[1], transform)
    found = []
    with torch.inference_mode():
        for images, _ in DataLoader(pictures, batch_size=32, num_workers=os.cpu_count() or 1):
            found.append(net(images))
    torch.cat(found)


def cold(bench: Bench) -> Iterator[tuple[float, float]]:
    """Everything, nothing cached, against the plain script."""
    data = bench.folder(bench.n)
    for _ in range(bench.repeat):
        with bench.fresh("cache") as cache:
            yield bench.advise(data, cache).seconds, bench.plain(data)


def feature_pass(bench: Bench) -> Iterator[tuple[float, float]]:
    """Pictures per second from files, against the bare forward pass on tensors in memory."""
    import torch

    from strategies.core.backbone import load_backbone
    from strategies.core.cache import ArrayCache
    from strategies.core.features import batches, extract_features, to_input
    from strategies.core.run import make_context
    from strategies.core.task import load_task

    pictures = load_task(bench.folder(bench.n)).fit_split
    backbone = load_backbone()
    net = backbone.build()
    with bench.fresh("cache") as folder:
        ctx = make_context(cache_dir=folder)
        paths = [p.path for p in pictures[:256]]
        ready = [to_input(b, backbone, ctx.device) for b in batches(paths, backbone, 2)]
        for i in range(bench.repeat):
            empty = ArrayCache(folder / str(i))
            start = time.perf_counter()
            extract_features(pictures, backbone, type(ctx)(empty, ctx.device, ctx.precision))
            per_picture = (time.perf_counter() - start) / len(pictures)
            start = time.perf_counter()
            with torch.inference_mode(), ctx.autocast():
                for images in ready:
                    net(images)
            bare = (time.perf_counter() - start) / len(paths)
            yield 1 / per_picture, 1 / bare


def warm(bench: Bench) -> Iterator[tuple[float, float]]:
    """Ask a second time about unchanged pictures."""
    data = bench.folder(bench.n)
    for _ in range(bench.repeat):
        with bench.fresh("cache") as cache:
            first = bench.advise(data, cache).seconds
            yield bench.advise(data, cache).seconds, first


def some_new(bench: Bench) -> Iterator[tuple[float, float]]:
    """Ask again with a tenth more pictures."""
    old, new = bench.folder(bench.n), bench.folder(N_NEW, skip=bench.n)
    for _ in range(bench.repeat):
        with bench.fresh("cache") as cache, bench.fresh("data") as folder:
            data = shutil.copytree(old, folder / "data")
            first = bench.advise(data, cache).seconds
            shutil.copytree(new, data, dirs_exist_ok=True)
            yield bench.advise(data, cache).seconds, first


def memory(bench: Bench) -> Iterator[tuple[float, float]]:
    """Peak memory with 50,000 pictures against 2,000."""
    yield from _sizes(bench, 50_000, 2_000, lambda spent: spent.peak_mb)


def sizes(bench: Bench) -> Iterator[tuple[float, float]]:
    """Time with 50,000 pictures against 5,000, as many of which are read."""
    yield from _sizes(bench, 50_000, 5_000, lambda spent: spent.seconds)


def _sizes(
    bench: Bench, large: int, small: int, what: Callable[[Spent], float]
) -> Iterator[tuple[float, float]]:
    """Measure folders of hard links to the same pictures, which are never the same ones twice."""
    with bench.fresh("links") as root:
        for n in (large, small):
            make_links(bench.folder(bench.n), root / str(n), n)
        for _ in range(bench.repeat):
            found = []
            for n in (large, small):
                with bench.fresh("cache") as cache:
                    found.append(what(bench.advise(root / str(n), cache)))
            yield found[0], found[1]


def make_links(source: Path, root: Path, n: int) -> None:
    """Fill class folders with hard links to pictures in turn.

    Many names of one picture are exact copies of it: the features of a copy are computed once, so
    the passes over both folders are equally long.
    """
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        (root / folder.name).mkdir(parents=True)
        files = sorted(folder.iterdir())
        for i in range(n // len(list(source.iterdir()))):
            file = files[i % len(files)]
            os.link(file, root / folder.name / f"{i}{file.suffix}")


def help_text(bench: Bench) -> Iterator[tuple[float, float]]:
    """``tl-advise --help`` against importing what it is printed with."""
    for _ in range(bench.repeat):
        told = run(PROGRAM.format("advise"), "--help").seconds
        yield told, run("import typer, rich").seconds


def predict(bench: Bench) -> Iterator[tuple[float, float]]:
    """``tl-auto predict`` on all pictures against the plain script."""
    data = bench.folder(bench.n)
    with bench.fresh("run") as folder:
        made = ["run", data, "--out", folder / "run", "--cache-dir", folder / "cache"]
        run(PROGRAM.format("auto"), *made, "--strategy", "linear_probe", "--time", "5m")
        for _ in range(bench.repeat):
            spent = run(PROGRAM.format("auto"), "predict", folder / "run", data, "--csv")
            yield spent.seconds, bench.plain(data)


def tail(bench: Bench) -> Iterator[tuple[float, float]]:
    """All that follows the feature pass, against the pass: from the table of ``--profile``."""
    data = bench.folder(bench.n)
    for _ in range(bench.repeat):
        with bench.fresh("cache") as cache:
            laps = read_laps(bench.advise(data, cache, "--profile").said)
        names = list(laps)
        after = names[names.index("features") + 1 :]
        yield sum(laps[name] for name in after), laps["features"]


def read_laps(said: str) -> dict[str, float]:
    """Read the table of ``--profile``: seconds by phase, in order."""
    rows = (line.split() for line in said.splitlines())
    return {" ".join(r[:-3]): float(r[-3]) for r in rows if len(r) > 3 and r[-2:-1] == ["s"]}


FIGURES = {
    1: Figure("`tl-advise`, nothing cached / plain script", 0.9, cold),
    2: Figure("feature pass / bare forward, pictures per second", 0.85, feature_pass, True),
    3: Figure("second `tl-advise` / first", 0.15, warm),
    4: Figure("1,000 pictures + 100 new / first", 0.3, some_new),
    5: Figure("peak memory, 50,000 pictures / 2,000", 1.2, memory),
    6: Figure("time, 50,000 pictures / 5,000", 1.5, sizes),
    7: Figure("`tl-advise --help` / importing typer and rich", 1.5, help_text),
    8: Figure("`tl-auto predict` / plain script", 0.9, predict),
    9: Figure("all after the feature pass / feature pass", 0.25, tail),
}


def main() -> None:
    """Measure the figures asked for and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1].parent / "shared" / "data" / "flowers5"
    parser.add_argument("--figures", type=int, nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--pictures", type=Path, default=default, help="folder of class folders")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        bench = Bench(args.pictures, Path(scratch), args.repeat)
        print("| | figure | bar | median | range | this / that |\n|---|---|---|---|---|---|")
        for number in args.figures:
            print(line(number, list(FIGURES[number].measure(bench))), flush=True)


def line(number: int, pairs: list[tuple[float, float]]) -> str:
    """Return one row of the table."""
    figure = FIGURES[number]
    ratios = [a / b for a, b in pairs]
    middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
    sign = "≥" if figure.at_least else "≤"
    return (
        f"| {number} | {figure.what} | {sign} {figure.bar} | {statistics.median(ratios):.2f} | "
        f"{min(ratios):.2f} to {max(ratios):.2f} ({len(ratios)}) | "
        f"{middle[0]:.4g} / {middle[1]:.4g} |"
    )


if __name__ == "__main__":
    main()
