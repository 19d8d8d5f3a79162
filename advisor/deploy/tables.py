"""Tables of compared runs and of similar images for the terminal, 80 columns."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.deploy.compare import ComparedRun
from advisor.deploy.similar import SimilarImages
from advisor.types.durations import duration
from strategies.core.metrics import LEVEL
from strategies.data.image import shown


def print_comparison(console: Console, runs: Sequence[ComparedRun]) -> None:
    """Print compared runs: accuracy with paired differences, then the facts of each run."""
    console.print(
        _accuracies(runs),
        Text(""),
        _facts(runs),
        Text(""),
        *(Text(line) for line in group_words(runs)),
        Text(
            f"Intervals are {100 * LEVEL:.0f}% intervals. ms/image: a forward pass on this "
            "machine, without reading the image."
        ),
        sep="\n",
    )


def group_words(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    """Say which runs have the same test images, a sentence each."""
    groups: dict[int | None, list[str]] = {}
    for number, run in enumerate(runs, start=1):
        groups.setdefault(run.group, []).append(str(number))
    unknown = groups.pop(None, [])
    lines = []
    if len(groups) == 1 and len(runs) > 1 and not unknown:
        lines.append("All runs have the same test images. Differences are paired, to run 1.")
    elif len(groups) > 1 or (groups and unknown):
        sets = "; ".join(", ".join(numbers) for numbers in groups.values())
        lines.append(f"Runs with the same test images: {sets}.")
        if len(groups) > 1:
            lines.append(
                "Test images differ between these sets: their accuracies are not comparable image "
                "by image. Differences are to the best run of a set."
            )
    if unknown:
        lines.append(f"No list of evaluated test images: run {', '.join(unknown)}.")
    return tuple(lines)


def print_similar(console: Console, found: SimilarImages) -> None:
    """Print the most similar images to each image, with their classes."""
    console.print(Text(f"Searched {found.n_searched:,} images: {found.where}"))
    root = _common_folder([n.path for _, near in found.found for n in near])
    if root:
        console.print(Text(f"Paths are below {shown(root)}"))
    for path, neighbours in found.found:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
        table.add_column("similarity", justify="right")
        if any(n.label for n in neighbours):
            table.add_column("class")
        table.add_column("image", overflow="fold")
        for n in neighbours:
            label = [Text(n.label)] if len(table.columns) == 3 else []
            name = n.path.relative_to(root) if root else n.path
            table.add_row(f"{n.similarity:.3f}", *label, Text(shown(name)))
        rows: RenderableType = table if neighbours else Text("no other image")
        console.print(Group(Text(f"\n{shown(path)}", style="bold"), Padding(rows, (0, 0, 0, 2))))


def _common_folder(paths: Sequence[Path]) -> Path | None:
    """Return the folder that all paths are below; None if they are not below one."""
    folders = {path.parent for path in paths}
    anchors = {path.anchor for path in paths}
    return Path(os.path.commonpath(folders)) if len(anchors) == 1 else None


def _accuracies(runs: Sequence[ComparedRun]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("")
    table.add_column("run", overflow="fold")
    table.add_column("test accuracy", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("difference (points)", no_wrap=True)
    table.add_column("p", no_wrap=True)
    for number, run in enumerate(runs, start=1):
        accuracy = "no test images" if run.test is None else run.test.percent()
        change = ["", ""]
        if run.difference is not None:
            change = [run.difference.accuracy.points(unit=""), f"{run.difference.p_value:.3f}"]
        table.add_row(str(number), Text(shown(run.run)), accuracy, f"{run.n_test:,}", *change)
    return table


def _facts(runs: Sequence[ComparedRun]) -> RenderableType:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="")
    for name in ("", "strategy", "backbone"):
        table.add_column(name, overflow="fold")
    for name in ("input", "trials", "time", "size", "ms/image"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, run in enumerate(runs, start=1):
        table.add_row(
            str(number),
            run.strategy,
            Text(run.backbone),
            f"{run.input_px} px",
            str(run.n_trials),
            duration(run.seconds),
            f"{run.n_bytes / 1e6:.1f} MB",
            f"{run.ms_per_image:.1f}",
        )
    return table
