"""Ten ratios of time and memory: this program against the least that its work must cost.

Every figure is a ratio of two things measured in turn in one run, so it depends little on the
machine; printed are the median and the range over the repetitions. The plain script that figures 1
and 8 compare with is `plain_script` below: a timm network, torch's DataLoader, float32, nothing
else. Its weights are random, so it is spared reading them.

Run:   python benchmarks/speed.py [--figures 1 3 7] [--repeat 5] [--cpu] [--pictures FOLDER]
Guard: make bench, which is `--guard`: three figures on handwritten digits, with wide bounds
Cost:  half an hour on 2 quiet cores for all; figures 5 and 6 make 50,000 hard links.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROGRAM = "from advisor.cli.app import tl_{0}; tl_{0}()"
N, N_NEW = 1000, 100
MANY, SOME, FEW = 50_000, 5_000, 2_000
SETTLED_S = 2.5
"""Images that were written a moment ago are not believed to be unchanged."""


@dataclass(frozen=True)
class Spent:
    """What a process took: seconds, peak resident memory in MB, and what it said."""

    seconds: float
    peak_mb: float
    said: str


@dataclass(frozen=True)
class Bench:
    """Where images come from, and where there is room. What figures share is measured once.

    Attributes
    ----------
    cpu
        Whether to count processor time instead of wall-clock time: for a machine that others use.
    """

    source: Path
    scratch: Path
    n: int = N
    cpu: bool = False

    def run(self, code: str, *arguments: object) -> Spent:
        """Run Python code in a process of its own and measure it."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as out:
            command = [sys.executable, "-c", code, *map(str, arguments)]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said = out.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{said}")
        if self.cpu:
            seconds = usage.ru_utime + usage.ru_stime
        return Spent(seconds, usage.ru_maxrss / 1024, said)

    @cache  # noqa: B019
    def data(self, i: int) -> Path:
        """Return a folder of class folders for the i-th repetition."""
        root = self.scratch / f"data-{i}"
        copy_images(self.source, root, self.n)
        time.sleep(SETTLED_S)
        return root

    def kept(self, i: int) -> Path:
        """Return the cache folder of the i-th repetition."""
        return self.scratch / f"cache-{i}"

    def advise(self, data: Path, cache: Path) -> Spent:
        """Run ``tl-advise`` in a process of its own."""
        options = ["--cache-dir", cache, "--pilot", "off", "--quiet", "--profile"]
        return self.run(PROGRAM.format("advise"), data, *options)

    @cache  # noqa: B019
    def first(self, i: int) -> Spent:
        """Advise, nothing cached."""
        return self.advise(self.data(i), self.kept(i))

    @cache  # noqa: B019
    def again(self, i: int) -> Spent:
        """Advise a second time; nothing has changed."""
        self.first(i)
        return self.advise(self.data(i), self.kept(i))

    @cache  # noqa: B019
    def plain(self, i: int) -> Spent:
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
    def of_many(self, n: int, i: int) -> Spent:
        """Advise on `n` images, nothing cached."""
        folder = self.scratch / "cache-of-many"
        spent = self.advise(self.links(n), folder)
        shutil.rmtree(folder)
        return spent

    @cache  # noqa: B019
    def classifier(self) -> Path:
        """Make a classifier."""
        out = self.scratch / "run"
        options = ["--out", out, "--cache-dir", self.kept(0), "--strategy", "linear_probe"]
        self.run(PROGRAM.format("auto"), "run", self.data(0), *options, "--time", "10m", "--quiet")
        return out


def copy_images(source: Path, root: Path, n: int, skip: int = 0) -> None:
    """Copy `n` images of a folder of class folders, the same number of every class."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for folder in classes:
        (root / folder.name).mkdir(parents=True, exist_ok=True)
        start, share = skip // len(classes), n // len(classes)
        for path in sorted(folder.iterdir())[start : start + share]:
            shutil.copyfile(path, root / folder.name / path.name)


def make_links(source: Path, root: Path, n: int) -> None:
    """Fill class folders with hard links to images in turn.

    Many names of one image are exact copies: its features are computed once, so that the pass
    over few links and over many is equally long.
    """
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for folder in classes:
        (root / folder.name).mkdir(parents=True)
        files = sorted(folder.iterdir())
        for i in range(n // len(classes)):
            file = files[i % len(files)]
            os.link(file, root / folder.name / f"{i}{file.suffix}")


def plain_script() -> None:
    """Compute features as a careful person would without this program: ``sys.argv[1]``."""
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


def cold(bench: Bench, i: int) -> Pair:
    """Time everything, nothing cached, and the plain script."""
    return bench.first(i).seconds, bench.plain(i).seconds


def feature_pass(bench: Bench, i: int) -> Pair:
    """Count images per second from files, and of the bare network on tensors in memory.

    Each in a process of its own: ours makes glibc keep freed memory, a plain loop does not.
    """
    folders = bench.data(0), bench.scratch / f"pass-{i}"
    return _rate(bench, "our_pass", *folders), _rate(bench, "bare_pass", *folders)


def tuned_pass(bench: Bench, i: int) -> Pair:
    """Do the same, but let the bare network have the memory that ours has."""
    folders = bench.data(0), bench.scratch / f"tuned-{i}"
    return _rate(bench, "our_pass", *folders), _rate(bench, "bare_pass", *folders, "kept")


def _rate(bench: Bench, function: str, *arguments: object) -> float:
    code = f"import runpy; runpy.run_path({__file__!r})[{function!r}]()"
    said = bench.run(code, *arguments, *(["cpu"] if bench.cpu else []))
    return float(said.said.split()[-1])


def our_pass() -> None:
    """Print images per second of this program's pass: ``sys.argv[1:3]`` are data and cache."""
    from strategies.core.context import make_context
    from strategies.data.dataset import load_dataset
    from strategies.models.backbone import load_backbone
    from strategies.models.features import extract_features

    ctx = make_context(cache_dir=Path(sys.argv[2]))
    images = load_dataset(sys.argv[1]).fit_split
    backbone = load_backbone()
    budget = time.process_time if "cpu" in sys.argv else time.perf_counter
    start = budget()
    extract_features(images, backbone, ctx)
    print(len(images) / (budget() - start))


def bare_pass() -> None:
    """Print images per second of the network alone, in the same precision, in batches."""
    import torch

    from strategies.core.allocator import keep_freed_memory
    from strategies.core.context import choose_precision
    from strategies.data.dataset import load_dataset
    from strategies.models.backbone import load_backbone
    from strategies.models.features import BATCH, batches, to_input

    if "kept" in sys.argv:
        keep_freed_memory()
    device = torch.device("cpu")
    paths = [p.path for p in load_dataset(sys.argv[1]).fit_split[: 10 * BATCH]]
    backbone = load_backbone()
    net = backbone.build()
    ready = [to_input(b, backbone, device) for b in batches(paths, backbone, 2)]
    budget = time.process_time if "cpu" in sys.argv else time.perf_counter
    precision = choose_precision(device)
    with (
        torch.inference_mode(),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        net(ready[0])
        start = budget()
        for images in ready:
            net(images)
    print(len(paths) / (budget() - start))


def warm(bench: Bench, i: int) -> Pair:
    """Time the second call and the first."""
    first = bench.first(i).seconds
    return bench.again(i).seconds, first


def some_new(bench: Bench, i: int) -> Pair:
    """Time a call with a tenth more images in the folder, and the first."""
    data, kept = bench.scratch / f"more-{i}", bench.scratch / f"more-cache-{i}"
    copy_images(bench.source, data, bench.n)
    time.sleep(SETTLED_S)
    first = bench.advise(data, kept).seconds
    copy_images(bench.source, data, N_NEW, skip=bench.n)
    time.sleep(SETTLED_S)
    return bench.advise(data, kept).seconds, first


def memory(bench: Bench, i: int) -> Pair:
    """Look at the peak memory with 50,000 images and with 2,000."""
    return bench.of_many(MANY, i).peak_mb, bench.of_many(FEW, i).peak_mb


def sizes(bench: Bench, i: int) -> Pair:
    """Time 50,000 images and 5,000, as many of which are read."""
    return bench.of_many(MANY, i).seconds, bench.of_many(SOME, i).seconds


def help_text(bench: Bench, i: int) -> Pair:
    """Time ``tl-advise --help`` and importing what it is printed with."""
    told = bench.run(PROGRAM.format("advise"), "--help").seconds
    return told, bench.run("import typer, rich").seconds


def predict(bench: Bench, i: int) -> Pair:
    """Time ``tl-auto predict`` on all images, and the plain script."""
    arguments = ["predict", bench.classifier(), bench.data(i), "--csv"]
    return bench.run(PROGRAM.format("auto"), *arguments).seconds, bench.plain(i).seconds


def tail(bench: Bench, i: int) -> Pair:
    """Time what follows the feature pass, and the pass, by the table of ``--profile``."""
    phase_timer = read_laps(bench.first(i).said)
    names = list(phase_timer)
    return sum(phase_timer[n] for n in names[names.index("features") + 1 :]), phase_timer[
        "features"
    ]


def read_laps(said: str) -> dict[str, float]:
    """Read the table of ``--profile``: seconds by phase, in order."""
    rows = (line.split() for line in said.splitlines())
    return {" ".join(r[:-3]): float(r[-3]) for r in rows if len(r) > 3 and r[-2] == "s"}


@dataclass(frozen=True)
class Figure:
    """A ratio of two measurements, the bar it is held against, and how to measure it once."""

    what: str
    bar: float
    measure: Callable[[Bench, int], Pair]
    at_least: bool = False

    def meets(self, ratio: float, slack: float = 1.0) -> bool:
        """Whether a ratio is on the right side of the bar, times or over `slack`."""
        return ratio >= self.bar / slack if self.at_least else ratio <= self.bar * slack


FIGURES = {
    1: Figure("`tl-advise`, nothing cached / plain script", 0.9, cold),
    2: Figure("feature pass / bare forward pass, images per second", 0.85, feature_pass, True),
    3: Figure("second `tl-advise` / first", 0.15, warm),
    4: Figure("a tenth of the images new / first", 0.3, some_new),
    5: Figure("peak memory, 50,000 images / 2,000", 1.2, memory),
    6: Figure("time, 50,000 images / 5,000", 1.5, sizes),
    7: Figure("`tl-advise --help` / importing typer and rich", 1.5, help_text),
    8: Figure("`tl-auto predict` / plain script", 0.9, predict),
    10: Figure("as 2, the bare pass with this program's memory", 0.85, tuned_pass, True),
    9: Figure("all after the feature pass / feature pass", 0.25, tail),
}
GUARDED, GUARD_N, GUARD_REPEAT, SLACK = (2, 3, 7), 200, 3, 2.5
"""What the guard looks at, and by which factor a ratio must miss its bar to fail."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the figures asked for and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1].parent / "shared" / "data" / "flowers5"
    parser.add_argument("--figures", type=int, nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--images", type=Path, default=default, help="folder of class folders")
    parser.add_argument("--cpu", action="store_true", help="processor time, not wall-clock time")
    parser.add_argument("--guard", action="store_true", help="quick, on digits; fails if slow")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        room = Path(scratch)
        if args.guard:
            guard(room)
        else:
            measure(Bench(args.images, room, cpu=args.cpu), args.figures, args.repeat)


def measure(bench: Bench, figures: list[int], repeat: int) -> dict[int, float]:
    """Print a row of every figure as soon as it is there; return the medians."""
    print("| | figure | bar | median | range | this / that |\n|---|---|---|---|---|---|")
    medians = {}
    for number in figures:
        figure = FIGURES[number]
        pairs = [figure.measure(bench, i) for i in range(repeat)]
        ratios = [this / that for this, that in pairs]
        medians[number] = statistics.median(ratios)
        this, that = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"| {number} | {figure.what} | {'≥' if figure.at_least else '≤'} {figure.bar} | "
            f"{medians[number]:.2f} | {min(ratios):.2f} to {max(ratios):.2f} ({repeat}) | "
            f"{this:.4g} / {that:.4g} |",
            flush=True,
        )
    return medians


def guard(room: Path) -> None:
    """Measure a few figures on digits, and fail where one is far beyond its bar."""
    from advisor.cli.demo import write_digits

    bench = Bench(write_digits(room), room, GUARD_N)
    medians = measure(bench, list(GUARDED), GUARD_REPEAT)
    beyond = [n for n, ratio in medians.items() if not FIGURES[n].meets(ratio, SLACK)]
    if beyond:
        raise SystemExit(f"Much slower than it was: figures {beyond}, by a factor over {SLACK}.")


if __name__ == "__main__":
    main()
