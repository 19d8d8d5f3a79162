"""Measure ten ratios of time or memory of this program to a baseline, each with a target.

Both parts of a ratio are measured in turn in one run, so it depends little on the machine. The
median and the range over repetitions are printed. The baseline of figures 1 and 8 is
`plain_script` below: a timm network, torch's DataLoader and float32, nothing else. Its weights are
random, so it saves the time of reading them.

Run:      python benchmarks/speed.py [--figures 1 3 7] [--repeat 5] [--cpu] [--images FOLDER]
          make bench    # the same as --guard: three figures on handwritten digits, with slack
Cost:     half an hour on 2 idle cores for all; figures 5 and 6 make 50,000 hard links.
Expected: every figure meets its target, except 4 (0.31) and 10 (docs/benchmarks/speed.md).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROGRAM = "from advisor.cli.app import tl_{0}; tl_{0}()"
KEEP_MEMORY = "keep-memory"
N, N_NEW = 1000, 100
MANY, SOME, FEW = 50_000, 5_000, 2_000
SETTLED_S = 2.5
"""Pause after writing images: files modified a moment ago are read again by the program."""


@dataclass(frozen=True)
class ProcessResult:
    """Seconds, peak resident memory in MB, and output of a process."""

    seconds: float
    peak_mb: float
    output: str


@dataclass(frozen=True)
class Bench:
    """Source of images and scratch folder; measurements that figures share are made once.

    Attributes
    ----------
    cpu
        Whether to measure processor time instead of wall-clock time: for a shared machine.
    """

    source: Path
    scratch: Path
    n: int = N
    cpu: bool = False

    def run(self, code: str, *arguments: object) -> ProcessResult:
        """Run Python code in a process of its own and measure it."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as out:
            command = [sys.executable, "-c", code, *map(str, arguments)]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            output = out.read()
        if process.returncode:
            raise SystemExit(
                f"{' '.join(command)}\nfailed with exit code {process.returncode}:\n{output}"
            )
        if self.cpu:
            seconds = usage.ru_utime + usage.ru_stime
        return ProcessResult(seconds, usage.ru_maxrss / 1024, output)

    @cache  # noqa: B019
    def data(self, i: int) -> Path:
        """Return a folder of class folders for the i-th repetition."""
        root = self.scratch / f"data-{i}"
        copy_images(self.source, root, self.n)
        time.sleep(SETTLED_S)
        return root

    def cache_dir(self, i: int) -> Path:
        """Return the cache folder of the i-th repetition."""
        return self.scratch / f"cache-{i}"

    def advise(self, data: Path, cache: Path) -> ProcessResult:
        """Run ``tl-advise`` in a process of its own."""
        options = ["--cache-dir", cache, "--quiet", "--profile"]
        return self.run(PROGRAM.format("advise"), data, *options)

    @cache  # noqa: B019
    def first(self, i: int) -> ProcessResult:
        """Run ``tl-advise`` with an empty cache."""
        return self.advise(self.data(i), self.cache_dir(i))

    @cache  # noqa: B019
    def again(self, i: int) -> ProcessResult:
        """Run ``tl-advise`` a second time on the same images."""
        self.first(i)
        return self.advise(self.data(i), self.cache_dir(i))

    @cache  # noqa: B019
    def plain(self, i: int) -> ProcessResult:
        """Run the plain script on the same images."""
        code = f"import runpy; runpy.run_path({__file__!r})['plain_script']()"
        return self.run(code, self.data(i))

    @cache  # noqa: B019
    def links(self, n: int) -> Path:
        """Return a folder of `n` hard links to the images of the first repetition."""
        root = self.scratch / f"links-{n}"
        make_links(self.data(0), root, n)
        return root

    @cache  # noqa: B019
    def of_many(self, n: int, i: int) -> ProcessResult:
        """Run ``tl-advise`` on `n` images with an empty cache."""
        folder = self.scratch / "cache-of-many"
        result = self.advise(self.links(n), folder)
        shutil.rmtree(folder)
        return result

    @cache  # noqa: B019
    def classifier(self) -> Path:
        """Fit a linear probe by ``tl-auto run``; return its run folder."""
        out = self.scratch / "run"
        options = ["--out", out, "--cache-dir", self.cache_dir(0), "--strategy", "linear_probe"]
        self.run(PROGRAM.format("auto"), "run", self.data(0), *options, "--time", "10m", "--quiet")
        return out


def copy_images(source: Path, root: Path, n: int, skip: int = 0) -> None:
    """Copy `n` images of a folder of class folders, the same number of each class."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for folder in classes:
        (root / folder.name).mkdir(parents=True, exist_ok=True)
        start, share = skip // len(classes), n // len(classes)
        for path in sorted(folder.iterdir())[start : start + share]:
            shutil.copyfile(path, root / folder.name / path.name)


def make_links(source: Path, root: Path, n: int) -> None:
    """Fill class folders with `n` hard links in all to the images of a folder, in turn.

    Links to the same image are exact duplicates. Features of duplicates are computed once, so the
    feature pass takes equally long for few and for many links.
    """
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for folder in classes:
        (root / folder.name).mkdir(parents=True)
        files = sorted(folder.iterdir())
        for i in range(n // len(classes)):
            file = files[i % len(files)]
            os.link(file, root / folder.name / f"{i}{file.suffix}")


def plain_script() -> None:
    """Compute features of the images in ``sys.argv[1]`` with timm and torch's DataLoader alone."""
    import timm
    import torch
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    net = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(net))
    dataset = ImageFolder(sys.argv[1], transform)
    found = []
    with torch.inference_mode():
        for images, _ in DataLoader(dataset, batch_size=32, num_workers=os.cpu_count() or 1):
            found.append(net(images))
    torch.cat(found)


Pair = tuple[float, float]


def first_call(bench: Bench, i: int) -> Pair:
    """Time ``tl-advise`` with an empty cache, and the plain script."""
    return bench.first(i).seconds, bench.plain(i).seconds


def feature_pass(bench: Bench, i: int) -> Pair:
    """Measure images per second of our feature pass from files, and of the network on tensors.

    Each runs in a process of its own: ours makes glibc keep freed memory, a plain loop does not.
    """
    folders = bench.data(0), bench.scratch / f"pass-{i}"
    return _rate(bench, "our_pass", *folders), _rate(bench, "bare_pass", *folders)


def feature_pass_equal_memory(bench: Bench, i: int) -> Pair:
    """Measure the same as `feature_pass`, with glibc keeping freed memory in both processes."""
    folders = bench.data(0), bench.scratch / f"tuned-{i}"
    return _rate(bench, "our_pass", *folders), _rate(bench, "bare_pass", *folders, KEEP_MEMORY)


def _rate(bench: Bench, function: str, *arguments: object) -> float:
    """Return the images per second that a function of this file prints, run in a process."""
    code = f"import runpy; runpy.run_path({__file__!r})[{function!r}]()"
    result = bench.run(code, *arguments, *(["cpu"] if bench.cpu else []))
    return float(result.output.split()[-1])


def our_pass() -> None:
    """Print images per second of this program's pass; ``sys.argv[1:3]`` are data and cache."""
    from strategies.core.allocator import keep_freed_memory
    from strategies.core.context import make_context
    from strategies.data.dataset import load_dataset
    from strategies.models.backbone import load_backbone
    from strategies.models.features import extract_features

    keep_freed_memory()
    ctx = make_context(cache_dir=Path(sys.argv[2]))
    images = load_dataset(sys.argv[1]).fit_split
    backbone = load_backbone()
    clock = time.process_time if "cpu" in sys.argv else time.perf_counter
    start = clock()
    extract_features(images, backbone, ctx)
    print(len(images) / (clock() - start))


def bare_pass() -> None:
    """Print images per second of the network alone on batches in memory, in the same precision."""
    import torch

    from strategies.core.allocator import keep_freed_memory
    from strategies.core.devices import choose_precision
    from strategies.data.dataset import load_dataset
    from strategies.models.backbone import load_backbone
    from strategies.models.features import INFERENCE_BATCH, batches, to_input

    if KEEP_MEMORY in sys.argv:
        keep_freed_memory()
    device = torch.device("cpu")
    paths = [p.path for p in load_dataset(sys.argv[1]).fit_split[: 10 * INFERENCE_BATCH]]
    backbone = load_backbone()
    net = backbone.build()
    ready = [to_input(b, backbone, device) for b in batches(paths, backbone, 2)]
    clock = time.process_time if "cpu" in sys.argv else time.perf_counter
    precision = choose_precision(device)
    with (
        torch.inference_mode(),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        net(ready[0])
        start = clock()
        for images in ready:
            net(images)
    print(len(paths) / (clock() - start))


def second_call(bench: Bench, i: int) -> Pair:
    """Time a second ``tl-advise`` on the same images, and the first."""
    first = bench.first(i).seconds
    return bench.again(i).seconds, first


def added_images(bench: Bench, i: int) -> Pair:
    """Time ``tl-advise`` after adding a tenth more images, and the first call."""
    data, cache = bench.scratch / f"more-{i}", bench.scratch / f"more-cache-{i}"
    copy_images(bench.source, data, bench.n)
    time.sleep(SETTLED_S)
    first = bench.advise(data, cache).seconds
    copy_images(bench.source, data, N_NEW, skip=bench.n)
    time.sleep(SETTLED_S)
    return bench.advise(data, cache).seconds, first


def memory(bench: Bench, i: int) -> Pair:
    """Measure the peak memory in MB with 50,000 images and with 2,000."""
    return bench.of_many(MANY, i).peak_mb, bench.of_many(FEW, i).peak_mb


def sizes(bench: Bench, i: int) -> Pair:
    """Time ``tl-advise`` on 50,000 images and on 5,000; the same number is sampled from both."""
    return bench.of_many(MANY, i).seconds, bench.of_many(SOME, i).seconds


def help_text(bench: Bench, i: int) -> Pair:
    """Time ``tl-advise --help``, and importing typer and rich, which it needs."""
    ours = bench.run(PROGRAM.format("advise"), "--help").seconds
    return ours, bench.run("import typer, rich").seconds


def predict(bench: Bench, i: int) -> Pair:
    """Time ``tl-auto predict`` on all images, and the plain script."""
    arguments = ["predict", bench.classifier(), bench.data(i), "--csv"]
    return bench.run(PROGRAM.format("auto"), *arguments).seconds, bench.plain(i).seconds


def after_features(bench: Bench, i: int) -> Pair:
    """Return seconds of all phases after the feature pass, and of the pass, by ``--profile``."""
    seconds = read_profile(bench.first(i).output)
    names = list(seconds)
    after = names[names.index("features") + 1 :]
    return sum(seconds[n] for n in after), seconds["features"]


def read_profile(output: str) -> dict[str, float]:
    """Read the table of ``--profile``: seconds by phase, in order."""
    rows = (line.split() for line in output.splitlines())
    return {" ".join(r[:-3]): float(r[-3]) for r in rows if len(r) > 3 and r[-2] == "s"}


@dataclass(frozen=True)
class Figure:
    """A ratio of two measurements, its target, and the function that measures both once."""

    what: str
    target: float
    measure: Callable[[Bench, int], Pair]
    at_least: bool = False

    def meets(self, ratio: float, slack: float = 1.0) -> bool:
        """Return whether a ratio meets the target, relaxed by the factor `slack`."""
        return ratio >= self.target / slack if self.at_least else ratio <= self.target * slack


FIGURES = {
    1: Figure("`tl-advise`, empty cache / plain script", 0.9, first_call),
    2: Figure("feature pass / bare forward pass, images per second", 0.85, feature_pass, True),
    3: Figure("second `tl-advise` / first", 0.15, second_call),
    4: Figure("`tl-advise` with a tenth more images / first", 0.3, added_images),
    5: Figure("peak memory, 50,000 images / 2,000", 1.2, memory),
    6: Figure("time, 50,000 images / 5,000", 1.5, sizes),
    7: Figure("`tl-advise --help` / importing typer and rich", 1.5, help_text),
    8: Figure("`tl-auto predict` / plain script", 0.9, predict),
    10: Figure("as 2, both keep freed memory", 0.85, feature_pass_equal_memory, True),
    9: Figure("all phases after the feature pass / feature pass", 0.25, after_features),
}
GUARDED, GUARD_N, GUARD_REPEAT, SLACK = (2, 3, 7), 200, 3, 2.5
"""Figures, images and repetitions of the guard; it fails beyond a target by the factor `SLACK`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the figures that were asked for, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1].parent / "shared" / "data" / "flowers5"
    parser.add_argument("--figures", type=int, nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--images", type=Path, default=default, help="folder of class folders")
    parser.add_argument("--cpu", action="store_true", help="processor time, not wall-clock time")
    parser.add_argument("--guard", action="store_true", help="quick, on digits; fails if slow")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        if args.guard:
            guard(Path(scratch))
        else:
            bench = Bench(args.images, Path(scratch), cpu=args.cpu)
            measure(bench, args.figures, args.repeat)


def measure(bench: Bench, figures: list[int], repeat: int) -> dict[int, float]:
    """Print a row per figure as soon as it is measured; return the medians."""
    print("| | figure | target | median | range (repetitions) | both values, median |")
    print("|---|---|---|---|---|---|")
    medians = {}
    for number in figures:
        figure = FIGURES[number]
        pairs = [figure.measure(bench, i) for i in range(repeat)]
        ratios = [ours / baseline for ours, baseline in pairs]
        medians[number] = statistics.median(ratios)
        ours, baseline = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"| {number} | {figure.what} | {'≥' if figure.at_least else '≤'} {figure.target} | "
            f"{medians[number]:.2f} | {min(ratios):.2f} to {max(ratios):.2f} ({repeat}) | "
            f"{ours:.4g} / {baseline:.4g} |",
            flush=True,
        )
    return medians


def guard(scratch: Path) -> None:
    """Measure a few figures on digits, and fail if one misses its target by more than `SLACK`."""
    from advisor.cli.demo import write_digits

    bench = Bench(write_digits(scratch), scratch, GUARD_N)
    medians = measure(bench, list(GUARDED), GUARD_REPEAT)
    missed = [n for n, ratio in medians.items() if not FIGURES[n].meets(ratio, SLACK)]
    if missed:
        raise SystemExit(
            f"Much slower than the target: figures {missed}, by a factor of more than {SLACK}."
        )


if __name__ == "__main__":
    main()
