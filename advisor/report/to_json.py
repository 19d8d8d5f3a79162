"""Conversion of advice to JSON, in a versioned schema."""

from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

from advisor.report.charts.quadrant import landmarks
from advisor.types.advice import SCHEMA_VERSION, Advice, Finding
from strategies.data.image import shown


def advice_record(advice: Advice) -> dict[str, Any]:
    """Return the advice as plain JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": advice.dataset,
        "data": shown(advice.data),
        "recommendations": [asdict(r) for r in advice.recommendations],
        "frontier": None if advice.frontier is None else asdict(advice.frontier),
        "time_s": advice.time_s,
        "rejections": [asdict(r) for r in advice.rejections],
        "quadrant": asdict(advice.quadrant),
        "similarity": asdict(advice.profile.similarity.score),
        "landmarks": [{"name": n, "similarity": s} for n, s in landmarks()],
        "profile": asdict(advice.profile),
        "backbones": [asdict(b) for b in advice.backbones],
        "risks": [asdict(r) for r in advice.risks],
        "alternative": None if advice.alternative is None else asdict(advice.alternative),
        "device_bytes": advice.device_bytes,
        "findings": [finding_record(f) for f in advice.findings],
        "quarantine": [{"path": shown(s.path), "reason": s.reason} for s in advice.quarantine],
        "choices": [asdict(c) for c in advice.choices],
        "split": {
            "description": advice.split,
            "train": advice.profile.n_train,
            "val": advice.profile.n_val,
            "test": advice.n_test or None,
        },
        "seed": advice.seed,
        "command": advice.command,
        "versions": versions(),
        "seconds": advice.seconds,
    }


def finding_record(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain JSON values, without its images: they may be thousands."""
    return {f.name: getattr(finding, f.name) for f in fields(finding) if f.name != "affected"}


def versions() -> dict[str, str]:
    """Return the package versions that the numbers depend on."""
    return {name: version(name) for name in ("tl-advisor", "torch", "timm")}
