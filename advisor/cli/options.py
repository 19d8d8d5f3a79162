"""Command-line options that tl-advise and tl-auto share, and their parsing.

Heavy modules are imported inside functions, so that ``--help`` and the error for a wrong path
appear at once.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from advisor.cli.console import OnProgress, errors, fail, print_note

if TYPE_CHECKING:
    from advisor.types.options import Options


Data = Annotated[
    Path | None,
    typer.Argument(
        help="Dataset: a folder with one subfolder per class, or with train/ [val/] [test/]; a "
        "CSV, TSV or Parquet manifest; a .tar archive; or hfds/NAME."
    ),
]
Demo = Annotated[
    bool, typer.Option("--demo", help="Use scikit-learn's handwritten digits as the dataset.")
]
BackboneName = Annotated[
    str,
    typer.Option(
        help="timm model name, hf-hub:..., local-dir:..., or auto. Several, separated by commas, "
        "are compared.",
        show_default=True,
    ),
]
InputPx = Annotated[
    int | None, typer.Option(min=16, help="Input resolution: side of the network's input.")
]
StrategyName = Annotated[str, typer.Option(help="Name of the strategy to use, or auto.")]
Val = Annotated[Path | None, typer.Option(help="Separate folder of validation images.")]
Test = Annotated[Path | None, typer.Option(help="Separate folder of test images.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of splits, folds and training.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads that read images; default: one per CPU core.")
]
CacheDir = Annotated[Path | None, typer.Option(help="Folder of the feature cache.")]
Root = Annotated[
    Path | None, typer.Option(help="Folder that a manifest's relative paths start from.")
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Regular expression on paths: images with the same match stay in the same split and "
        "fold; none: no grouping."
    ),
]
MaxImages = Annotated[int, typer.Option(min=0, help="Maximum number of images per split; 0: all.")]
MaxQuarantine = Annotated[
    float, typer.Option(min=0, max=1, help="Maximum share of unreadable images.")
]
ReferenceFolder = Annotated[
    Path | None,
    typer.Option("--reference", help="Folder of images from the backbone's pretraining domain."),
]
PreferOption = Annotated[
    Literal["accuracy", "balanced", "cheap"],
    typer.Option(help="Trade-off between accuracy and training cost."),
]
PilotOption = Annotated[
    Literal["auto", "on", "off"],
    typer.Option("--pilot", help="Run a short pilot fine-tuning as evidence."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result, no progress.")]


def parse_duration_s(text: str) -> float:
    """Parse ``"90s"``, ``"10m"``, ``"1.5h"`` or plain seconds into seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not found or float(found[1]) <= 0:
        fail(f"--time {text!r} is not a duration. Give for example 90s, 10m or 2h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


def data_folder(data: Path | None, demo: bool, cache_dir: Path | None) -> Path:
    """Return the path of the dataset; reject a wrong one before heavy imports."""
    if demo:
        if data is not None:
            fail(f"{data} and --demo cannot be used together. Each names a dataset; give one.")
        with errors():
            from advisor.cli.demo import write_digits
            from strategies.core.cache import default_cache_dir

            return write_digits(cache_dir or default_cache_dir())
    if data is None:
        fail("No dataset was given. Give a folder with one subfolder per class, or --demo.")
    if not data.exists() and data.parts[:1] != ("hfds",):
        fail(
            f"{data} does not exist. Give a folder with one subfolder per class, a CSV manifest "
            "(path,label[,split]), a .tar archive, or hfds/NAME."
        )
    if data.is_file() and data.suffix.lower() not in (".csv", ".tsv", ".parquet", ".tar"):
        fail(
            f"{data} is a file of an unknown type. Give a folder with one subfolder per class, a "
            "CSV, TSV or Parquet manifest (path,label[,split]), or an uncompressed .tar archive."
        )
    return data


def options_of(given: Mapping[str, Any], on_progress: OnProgress) -> "Options":
    """Build `Options` from the arguments of a command (its ``locals()``)."""
    from advisor.types.options import Options

    values = {f.name: given[f.name] for f in fields(Options) if f.name in given}
    values |= {"max_images": given["max_images"] or None}
    return Options(**values, on_progress=on_progress, on_note=print_note)
