"""tl-auto cache: look at what was computed before, or forget it."""

import typer

from advisor.cli.console import errors, stdout
from advisor.cli.options import CacheDir

cache_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@cache_app.command("info")
def cache_info_command(cache_dir: CacheDir = None) -> None:
    """Say where the cache is, and how much it holds."""
    with errors():
        from strategies.core.cache import MAX_BYTES, ArrayCache, default_cache_dir

        info = ArrayCache(cache_dir or default_cache_dir()).info()
    size = f"{info.n_bytes / 2**20:,.1f} MB of at most {MAX_BYTES / 2**20:,.0f}"
    lines = [str(info.path), f"{info.n_rows:,} entries, {size}"]
    lines += [f"set aside because it was damaged: {path}" for path in info.damaged]
    for text in lines:
        stdout.print(text, highlight=False, markup=False)


@cache_app.command("clear")
def cache_clear_command(cache_dir: CacheDir = None) -> None:
    """Forget all that was computed; images, runs and files set aside stay."""
    with errors():
        from strategies.core.cache import ArrayCache, default_cache_dir

        cache = ArrayCache(cache_dir or default_cache_dir())
        n_rows = cache.info().n_rows
        cache.clear()
    stdout.print(f"{n_rows:,} entries forgotten: {cache.path}", highlight=False, markup=False)
