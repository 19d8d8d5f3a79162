"""What mkdocs writes into pages at build time: nothing here is kept by hand in two places.

- benchmarks/index.md is benchmarks/README.md;
- reference/findings.md is the page that ``tl-advise --explain`` prints;
- reference/commands.md lists the options that the commands declare;
- reference/json.md lists the fields of the schema.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from advisor.cli.app import advise_app, auto_app

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "advisor/report/schema/advice.schema.json"


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Return the text of a page: from its source in the repository, or with its tables."""
    match page.file.src_uri:
        case "benchmarks/index.md":
            text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
            return text.replace("](../docs/benchmarks/", "](").replace("](../docs/", "](../")
        case "reference/findings.md":
            return (ROOT / "advisor/findings/findings.md").read_text(encoding="utf-8")
        case "reference/commands.md":
            return "\n".join([markdown, *commands()])
        case "reference/json.md":
            return "\n".join([markdown, *fields()])
    return markdown


def commands() -> Iterator[str]:
    """Yield the lines about both programs, from what Typer knows of them."""
    yield from command("tl-advise", typer.main.get_command(advise_app))
    yield from command("tl-auto", typer.main.get_command(auto_app))


def command(name: str, of: Any) -> Iterator[str]:
    """Yield the help of a command, and a table of its options for every panel."""
    inner = getattr(of, "commands", {})
    arguments = [p for p in of.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(p.name.upper() for p in arguments), "[OPTIONS]"])
    yield from ("", f"## {name}", "", of.help or "", "", "```", usage, "```", "")
    yield from (f"- `{p.name.upper()}`: {escaped(p.help)}" for p in arguments)
    panels: dict[str, list[Any]] = {}
    for option in of.params:
        if option.param_type_name == "option" and not option.hidden and option.help:
            panels.setdefault(option.rich_help_panel or "Options", []).append(option)
    for panel, options in panels.items():
        yield from ("", f"**{panel}**", "", "| option | meaning | default |", "|---|---|---|")
        yield from (row(option) for option in options)
    for child, about in inner.items():
        yield from command(f"{name} {child}", about)


def row(option: Any) -> str:
    """Return one line of a table of options."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    default = option.default
    none = default is None or default is False or default in ((), []) or callable(default)
    shown = "" if none else f"`{default}`"
    return f"| {names} | {escaped(option.help)} | {shown} |"


def escaped(text: str) -> str:
    """Return a help text as Markdown for a cell of a table."""
    one_line = re.sub(r"\s+", " ", text).replace("<", "&lt;")
    return re.sub(r"([|\[\]*_])", r"\\\1", one_line)


def fields() -> Iterator[str]:
    """Yield a table of the fields of the advice, and one for each of their parts."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = {"advice": schema, **schema["$defs"]}
    for name, part in parts.items():
        if "properties" in part:
            yield from ("", f"## {name}", "", part.get("description", ""))
            yield from ("", "| field | type | meaning |", "|---|---|---|")
            for field, about in part["properties"].items():
                text = about.get("description", "").replace("|", "\\|")
                yield f"| `{field}` | {kind(about)} | {text} |"


def kind(about: dict[str, Any]) -> str:
    """Return the type of a field in words, with a link to a part that has its own table."""
    if "$ref" in about:
        part = about["$ref"].rsplit("/", 1)[-1]
        return f"[{part}](#{part})"
    if "anyOf" in about:
        return " or ".join(kind(one) for one in about["anyOf"])
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return " or ".join(f"`{value}`" for value in about["enum"])
    if about.get("type") == "array" and "items" in about:
        return f"list of {kind(about['items'])}"
    types = about.get("type", "any")
    return types if isinstance(types, str) else " or ".join(types)
