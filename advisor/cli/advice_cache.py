"""Answers already given: the same images, options and program need no second measurement.

An advice is kept under a name made of all that it depends on. Images are known by what the file
system says of them (`strategies.data.inspection.signature`): asking again reads none of them, and
loads no network library.
"""

import dataclasses
import hashlib
import json
import os
import platform
import sys
from functools import cache
from pathlib import Path

from advisor.report.from_json import read_advice
from advisor.report.to_json import advice_record
from advisor.types.advice import Advice
from advisor.types.options import AUTO, Options
from strategies.core.cache import ArrayCache
from strategies.data.archives import is_archive
from strategies.data.hub import is_hub_name
from strategies.data.inspection import signature
from strategies.data.listing import list_everything
from strategies.models.catalogue import CATALOGUE

LOCAL = "local-dir:"
_SPACE = "answers"
_NOT_ASKED = ("on_progress", "on_note", "cache_dir", "workers")


def question(data: Path, options: Options) -> str | None:
    """Name all that the advice depends on: files, labels, splits, options, program, machine.

    None where this cannot be told without measuring: data or weights from a hub, a file that is
    missing, or one that was changed just now.

    Raises
    ------
    DataError
        If the data have no known layout.
    """
    backbones = options.backbone.split(",")
    local = [Path(name.removeprefix(LOCAL)) for name in backbones if name.startswith(LOCAL)]
    n_known = len(local) + sum(name == AUTO or name in CATALOGUE for name in backbones)
    if is_hub_name(data) or n_known < len(backbones):
        return None
    listing = list_everything(
        data,
        val=options.val,
        test=options.test,
        root=options.root,
        max_images=options.max_images,
        seed=options.seed,
    )
    files = [(s, *file) for s in listing.splits for file in listing.files(s)]
    paths = [] if is_archive(data) else [path for _, path, _ in files]
    paths += [data] if data.is_file() else []
    for folder in (options.reference, *local):
        paths += _files_below(folder)
    signs = [signature(path) for path in paths]
    if None in signs:
        return None
    names = [f.name for f in dataclasses.fields(options) if f.name not in _NOT_ASKED]
    asked = [(name, getattr(options, name)) for name in names]
    counts = {name: reservoir.counts for name, reservoir in listing.splits.items()}
    left_out = (listing.skipped, listing.merged, listing.origin)
    parts = (data, Path.cwd(), asked, files, signs, counts, left_out, _program(), _machine())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def stored_advice(cache: ArrayCache, name: str | None) -> Advice | None:
    """Return the advice that was kept under a name, if there is one."""
    found = {} if name is None else cache.get_json(_SPACE, [name])
    return None if name not in found else read_advice(found[name])


def store_advice(cache: ArrayCache, name: str | None, advice: Advice) -> None:
    """Keep an advice under its name: only if it reads back as what it was."""
    if name is None:
        return
    record = json.loads(json.dumps(advice_record(advice)))
    if read_advice(record) == advice:
        cache.put_json(_SPACE, {name: record})


def _files_below(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return sorted(Path(parent) / n for parent, _, names in os.walk(folder) for n in names)


@cache
def _program() -> str:
    """Return a digest of this program and of what it ships, whatever its version says."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for room in ("advisor", "strategies"):
        for path in sorted((root / room).rglob("*.*")):
            if path.suffix in (".py", ".json", ".safetensors"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _machine() -> tuple[object, ...]:
    """Return what costs and rounding depend on: this machine, and the packages installed here."""
    packages = {p.name for place in sys.path for p in Path(place).glob("*-info")}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (platform.node(), os.cpu_count(), visible, sys.version, sorted(packages))
