"""tl-advise and tl-auto: with its two helpers below, the only module that prints or exits."""

import typer

from advisor.cli_auto import auto_app
from advisor.cli_shared import (
    BackboneName,
    CacheDir,
    Data,
    Demo,
    Device,
    GroupBy,
    InputPx,
    Json,
    MaxImages,
    MaxQuarantine,
    Quiet,
    ReferenceFolder,
    Root,
    Seed,
    StrategyName,
    Test,
    Val,
    data_folder,
    errors,
    options_of,
    print_json,
    progress,
    stdout,
)

advise_app = typer.Typer(add_completion=True, rich_markup_mode=None)


@advise_app.command()
def advise_command(
    data: Data = None,
    demo: Demo = False,
    backbone: BackboneName = "auto",
    input_px: InputPx = None,
    strategy: StrategyName = "auto",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    device: Device = "auto",
    cache_dir: CacheDir = None,
    root: Root = None,
    group_by: GroupBy = None,
    max_images: MaxImages = 5000,
    max_quarantine: MaxQuarantine = 0.1,
    reference: ReferenceFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say which kind of transfer learning suits a folder of labelled pictures."""
    given = locals()
    folder = data_folder(data, demo, cache_dir)
    with progress(quiet) as on_progress, errors():
        from advisor.pipeline import advise
        from advisor.report.as_json import advice_record
        from advisor.report.terminal import headline, print_advice

        options = options_of(given, on_progress)
        advice = advise(folder, options)
    if as_json:
        print_json(advice_record(advice))
    elif quiet:
        stdout.print(headline(advice), highlight=False)
    else:
        print_advice(stdout, advice)


def tl_advise() -> None:
    """Run ``tl-advise``."""
    advise_app()


def tl_auto() -> None:
    """Run ``tl-auto``."""
    auto_app()
