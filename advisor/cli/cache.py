"""Command tl-auto cache: show or clear the feature cache."""

from advisor.cli.console import errors, stdout
from advisor.cli.options import App, with_flags
from advisor.types.options import CacheDir

cache_app = App(no_args_is_help=True)


@cache_app.command("info")
@with_flags
def cache_info_command(cache_dir: CacheDir = None) -> None:
    """Show where the cache is and how much it holds."""
    with errors():
        from strategies.core.cache import MAX_BYTES, ArrayCache, default_cache_dir

        info = ArrayCache(cache_dir or default_cache_dir()).info()
    size = f"{info.n_bytes / 2**20:,.1f} MB of at most {MAX_BYTES / 2**20:,.0f}"
    lines = [str(info.path), f"{info.n_rows:,} entries, {size}"]
    lines += [f"damaged cache file, set aside: {path}" for path in info.damaged]
    for text in lines:
        stdout.print(text, highlight=False, markup=False)


@cache_app.command("clear")
@with_flags
def cache_clear_command(cache_dir: CacheDir = None) -> None:
    """Delete all cached results; images, runs and damaged cache files are kept."""
    with errors():
        from strategies.core.cache import ArrayCache, default_cache_dir

        cache = ArrayCache(cache_dir or default_cache_dir())
        n_rows = cache.info().n_rows
        cache.clear()
    stdout.print(f"{n_rows:,} entries deleted: {cache.path}", highlight=False, markup=False)
