"""Cache of complete advice, keyed by dataset, options, program and machine.

The key hashes everything that an advice depends on. Images enter it by their file-system
signature (`strategies.data.inspection.signature`): a cache hit reads no image and imports neither
torch nor timm.
"""

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
from advisor.types.flags import declared_in
from advisor.types.options import AUTO, Options
from strategies.core.cache import ArrayCache
from strategies.core.limits import usable_cpus
from strategies.data.archives import is_archive
from strategies.data.hub import is_hub_name
from strategies.data.inspection import signature
from strategies.data.listing import list_dataset
from strategies.models.catalogue import CATALOGUE

LOCAL = "local-dir:"
_NAMESPACE = "answers"


def advice_key(data: Path, options: Options, time_s: float | None = None) -> str | None:
    """Return the cache key: a hash of files, labels, splits, options, program and machine.

    None where the inputs cannot be identified without reading them: a dataset or weights from a
    hub, a missing file, or a file that was modified just now.

    Raises
    ------
    DataError
        If the dataset has no known layout.
    """
    backbones = options.backbone.split(",")
    local = [Path(name.removeprefix(LOCAL)) for name in backbones if name.startswith(LOCAL)]
    n_identified = len(local) + sum(name == AUTO or name in CATALOGUE for name in backbones)
    if is_hub_name(data) or n_identified < len(backbones):
        return None
    listing = list_dataset(
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
    signatures = [signature(path) for path in paths]
    if None in signatures:
        return None
    names = [o.name for o in declared_in(options) if not o.flag.is_neutral]
    option_values = [(name, getattr(options, name)) for name in names]
    counts = {name: reservoir.counts for name, reservoir in listing.splits.items()}
    listed = (listing.skipped, listing.merged, listing.origin)
    inputs = (data, Path.cwd(), option_values, time_s, files, signatures, counts, listed)
    parts = (*inputs, _program(), _machine())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def stored_advice(cache: ArrayCache, key: str | None) -> Advice | None:
    """Return the advice cached under a key, or None on a cache miss."""
    found = {} if key is None else cache.get_json(_NAMESPACE, [key])
    return None if key not in found else read_advice(found[key])


def store_advice(cache: ArrayCache, key: str | None, advice: Advice) -> None:
    """Cache an advice under a key, but only if it survives the round trip through JSON."""
    if key is None:
        return
    record = json.loads(json.dumps(advice_record(advice)))
    if read_advice(record) == advice:
        cache.put_json(_NAMESPACE, {key: record})


def _files_below(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return sorted(Path(parent) / n for parent, _, names in os.walk(folder) for n in names)


@cache
def _program() -> str:
    """Return a digest of the source, JSON and weight files of this program, not of its version."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in ("advisor", "strategies"):
        for path in sorted((root / package).rglob("*.*")):
            if path.suffix in (".py", ".json", ".safetensors"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _machine() -> tuple[object, ...]:
    """Return what timings and rounding depend on: host, CPUs, GPUs, Python and packages."""
    packages = {p.name for place in sys.path for p in Path(place).glob("*-info")}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (platform.node(), usable_cpus(), visible, sys.version, sorted(packages))
