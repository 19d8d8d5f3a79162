"""What both commands share: their options, consoles, progress and errors.

Heavy modules are imported inside the functions that need them, so that ``--help`` and a wrong path
answer at once.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from advisor.cli.console import OnProgress, errors, fail, note

if TYPE_CHECKING:
    from advisor.types.options import Options


Data = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of class folders or of train/ [val/] [test/]; a csv, tsv or parquet "
        "manifest; a tar; or hfds/NAME."
    ),
]
Demo = Annotated[bool, typer.Option("--demo", help="Use scikit-learn's handwritten digits.")]
BackboneName = Annotated[
    str,
    typer.Option(
        help="timm name, hf-hub:..., local-dir:..., or auto; a,b,c compares.", show_default=True
    ),
]
InputPx = Annotated[int | None, typer.Option(min=16, help="Side of the network's input.")]
StrategyName = Annotated[str, typer.Option(help="Force a strategy by name, or auto.")]
Val = Annotated[Path | None, typer.Option(help="Folder of validation images, given apart.")]
Test = Annotated[Path | None, typer.Option(help="Folder of test images, given apart.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of splits, folds and training.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads that read images; default: one a core.")
]
CacheDir = Annotated[Path | None, typer.Option(help="Where features are kept.")]
Root = Annotated[Path | None, typer.Option(help="Where a manifest's relative paths start.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Regular expression: images whose paths match alike stay together; or none."
    ),
]
MaxImages = Annotated[
    int, typer.Option(min=0, help="Read at most this many images of a split; 0: all.")
]
MaxQuarantine = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of unreadable images.")
]
ReferenceFolder = Annotated[
    Path | None,
    typer.Option("--reference", help="Images like those that the backbone was pretrained with."),
]
PreferOption = Annotated[
    Literal["accuracy", "balanced", "cheap"],
    typer.Option(help="What decides: accuracy at any cost, balanced, or cheap."),
]
PilotOption = Annotated[
    Literal["auto", "on", "off"],
    typer.Option("--pilot", help="A short fine-tuning as evidence: auto, on or off."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the answer alone, no progress.")]


def parse_duration_s(text: str) -> float:
    """Return the seconds of ``"90s"``, ``"10m"``, ``"1.5h"`` or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not found or float(found[1]) <= 0:
        fail(f"--time {text!r} is not a duration. Give for example 90s, 10m or 2h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


def data_folder(data: Path | None, demo: bool, cache_dir: Path | None) -> Path:
    """Return the folder to work on; refuse a wrong path before anything heavy is imported."""
    if demo:
        if data is not None:
            fail(f"{data} and --demo were both given. Leave one of them out.")
        with errors():
            from advisor.cli.demo import write_digits
            from strategies.core.cache import default_cache_dir

            return write_digits(cache_dir or default_cache_dir())
    if data is None:
        fail("No folder was given. Give a folder with one subfolder per class, or --demo.")
    if not data.exists() and data.parts[:1] != ("hfds",):
        fail(
            f"{data} does not exist. Give a folder with one subfolder per class, a CSV manifest "
            "(path,label[,split]), a .tar archive, or hfds/NAME."
        )
    if data.is_file() and data.suffix.lower() not in (".csv", ".tsv", ".parquet", ".tar"):
        fail(
            f"{data} is a file of no known kind. Give a folder with one subfolder per class, a "
            "CSV, TSV or Parquet manifest (path,label[,split]), or an uncompressed .tar archive."
        )
    return data


def options_of(given: Mapping[str, Any], on_progress: OnProgress) -> "Options":
    """Return the options among the arguments of a command (its ``locals()``)."""
    from advisor.types.options import Options

    values = {f.name: given[f.name] for f in fields(Options) if f.name in given}
    values |= {"max_images": given["max_images"] or None}
    return Options(**values, on_progress=on_progress, on_note=note)
