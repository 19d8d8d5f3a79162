"""Write the tables that are computed from the suite's rows into docs/benchmarks.

A table stands between two comments. The first names the script that prints it, with its options,
and the backbone and input size of the profiles:

    <!-- table: regret.py --budgets, tf_efficientnet_lite0, 96 px -->
    <!-- end of table -->

Run:      python benchmarks/write_tables.py [--check]
Cost:     minutes on one core; reads rows only.
Expected: pages with today's tables; with --check an error if they differ.
"""

import argparse
import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import intervals
import regret
import strategy_table

PAGES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
SCRIPTS = {
    "regret.py": regret.main,
    "intervals.py": intervals.main,
    "strategy_table.py": strategy_table.main,
}
BLOCK = re.compile(
    r"(<!-- table: ([^,\n]+), (\S+), (\d+) px -->\n).*?(<!-- end of table -->)", re.S
)
_HEADING = re.compile(r"^(\S+), profiles at (\d+) px.*\n", re.M)


@cache
def sections(command: str) -> Mapping[tuple[str, int], str]:
    """Return what a script prints, by backbone and input size of the profiles."""
    script, *options = command.split()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        SCRIPTS[script](options)
    parts = _HEADING.split(printed.getvalue())[1:]
    found = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {(backbone, int(px)): text.strip() for backbone, px, text in found}


def with_tables(text: str) -> str:
    """Return a document with today's tables in all its blocks."""

    def fill(block: re.Match[str]) -> str:
        begin, command, backbone, px, end = block.groups()
        return f"{begin}\n{sections(command)[backbone, int(px)]}\n\n{end}"

    return BLOCK.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--document", type=Path, nargs="+", default=sorted(PAGES.glob("*.md")))
    args = parser.parse_args(argv)
    for document in args.document:
        before = document.read_text(encoding="utf-8")
        after = with_tables(before)
        if args.check and after != before:
            raise SystemExit(f"{document} differs from the rows. Run benchmarks/write_tables.py.")
        if after != before:
            document.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
