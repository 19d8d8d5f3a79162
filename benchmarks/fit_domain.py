"""Fit the calibrations from distance to similarity score, and place datasets as landmarks.

Reads the shipped reference of the default backbone and the datasets of ``../shared/data``; writes
``advisor/similarity/calibration.json``. A calibration has three parameters. `same` is the 95%
quantile of the distance of fresh ImageNet samples of 30 images (half of the seen half of
imagenet_samples against its other half); its unseen half is not read. `far` is the distance of
the farthest dataset. `power` is chosen so that equal steps of the score have about equal noise:
it follows from how the standard deviation over samples of 50 images grows with the distance.

Run:      python benchmarks/fit_domain.py
Cost:     about 3 minutes on two cores once the features are cached.
Expected: the shipped calibration.json, apart from its date; README-domain.md.
"""

import argparse
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shared_datasets import DESCRIPTIONS, imagenet_halves, images_of

import advisor.similarity.domain_similarity
from advisor.similarity.bn_shift import SourceMoments, balanced, layer_shifts
from advisor.similarity.kernel_distance import cubic_kernels, kernel_distance
from advisor.similarity.reference import Reference, make_reference, shipped_reference
from strategies.core.context import make_context
from strategies.core.metrics import Labels
from strategies.data.dataset import labels_of
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.features import Features, Moments, extract_features

N_SAME, N_SCATTER, DRAWS = 30, 50, 100
MOST = 400
MAPS = Path(advisor.similarity.domain_similarity.__file__).with_name("calibration.json")
Distance = Callable[[Features, Labels, Reference], float]


def rows_of(features: Features, rows: NDArray[np.int64]) -> Features:
    """Return the features of some images."""
    m = features.moments
    assert m is not None
    moments = Moments(m.mean[rows], m.square[rows], m.layer, m.layer_share, m.layer_depth)
    return Features(tuple(p[rows] for p in features.pooled), moments, features.source_head)


def bn_shift(features: Features, labels: Labels, reference: Reference) -> float:
    """Return the mean BatchNorm shift against the moments of the reference."""
    source = next(iter(reference.moments.values()))
    assert features.moments is not None
    return float(layer_shifts(features.moments, balanced(labels), source).mean())


def bn_shift_running(features: Features, labels: Labels, reference: Reference) -> float:
    """Return the mean BatchNorm shift against the network's running statistics."""
    assert features.moments is not None
    channels = features.moments.mean.shape[1]
    source = SourceMoments(np.zeros(channels), np.ones(channels))
    return float(layer_shifts(features.moments, balanced(labels), source).mean())


def kernel(features: Features, labels: Labels, reference: Reference) -> float:
    """Return the kernel distance to the features of the reference."""
    known = next(iter(reference.features.values())).values()
    kernels = cubic_kernels(features.pooled[-1], known)
    return kernel_distance(kernels, balanced(labels).share)


DISTANCES: dict[str, Distance] = {
    "bn_shift": bn_shift,
    "bn_shift_running": bn_shift_running,
    "kernel": kernel,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit all calibrations and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=MAPS)
    options = parser.parse_args(argv)
    ctx = make_context(cache_dir=options.cache_dir)
    backbone = load_backbone()
    reference = shipped_reference(backbone)
    if reference is None:
        raise SystemExit("The backbone has no reference: run benchmarks/make_reference.py.")
    px = backbone.input_px
    source = reference.source(px)
    assert source is not None
    at_px = Reference(
        reference.name,
        reference.backbone,
        reference.digest,
        {px: source},
        {px: reference.features[px]},
        {},
        {},
    )
    seen, _ = imagenet_halves()
    imagenet = extract_features(seen, backbone, ctx)
    datasets = {}
    for name in DESCRIPTIONS:
        images = images_of(name)
        datasets[name] = (extract_features(images, backbone, ctx), labels_of(tuple(images)))
    fitted = {}
    for name, distance in DISTANCES.items():
        same = fresh_distance(distance, imagenet, backbone)
        fitted[name] = fit(name, distance, same, datasets, at_px)
    record = {
        "calibrations": fitted,
        "provenance": {
            "script": "benchmarks/fit_domain.py",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "backbone": backbone.name,
            "digest": backbone.digest,
            "input_px": px,
            "images": f"500 of imagenet_samples, at most 1000 of each of {len(DESCRIPTIONS)} sets",
        },
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def fresh_distance(distance: Distance, imagenet: Features, backbone: Backbone) -> float:
    """Return the 95% quantile of the distance of fresh ImageNet samples to a reference.

    Samples and reference are disjoint.
    """
    rng = np.random.default_rng(1)
    n = len(imagenet.pooled[-1])
    found = []
    for _ in range(DRAWS):
        order = rng.permutation(n)
        other = make_reference("", backbone, rows_of(imagenet, order[: n // 2]), {})
        rows = order[n // 2 :][:N_SAME]
        alone = np.zeros(N_SAME, dtype=np.int64)
        found.append(distance(rows_of(imagenet, rows), alone, other))
    return float(np.quantile(found, 0.95))


def fit(
    name: str,
    distance: Distance,
    same: float,
    datasets: Mapping[str, tuple[Features, Labels]],
    reference: Reference,
) -> dict[str, object]:
    """Fit one calibration; print its parameters, also with each dataset left out."""
    rng = np.random.default_rng(2)
    whole, scatter = {}, {}
    for key, (features, labels) in datasets.items():
        rows = rng.permutation(len(labels))[:MOST]
        whole[key] = distance(rows_of(features, rows), labels[rows], reference)
        draws = []
        for _ in range(DRAWS // 2):
            rows = rng.permutation(len(labels))[:N_SCATTER]
            draws.append(distance(rows_of(features, rows), labels[rows], reference))
        scatter[key] = float(np.std(draws))
    power = fit_power(whole, scatter, same)
    far = max(whole.values())
    without = [
        fit_power({k: v for k, v in whole.items() if k != out}, scatter, same) for out in whole
    ]
    print(f"{name}: same {same:.4f} far {far:.4f} power {power:.2f}")
    print(f"  leaving a dataset out: power {min(without):.2f} to {max(without):.2f}, ", end="")
    print(f"far at least {sorted(whole.values())[-2]:.4f}")
    for key in sorted(whole, key=lambda k: whole[k]):
        print(f"  {key:18s} {whole[key]:.4f}, sd at n = {N_SCATTER}: {scatter[key]:.4f}")
    landmarks = sorted(
        ((DESCRIPTIONS[k], round(v, 4)) for k, v in whole.items()), key=lambda x: x[1]
    )
    return {
        "same": round(same, 4),
        "far": round(far, 4),
        "power": round(power, 2),
        "landmarks": landmarks,
    }


def fit_power(whole: dict[str, float], scatter: dict[str, float], same: float) -> float:
    """Return the power that makes the noise of the score about constant, in [0.5, 1]."""
    beyond = {k: v - same for k, v in whole.items() if v > same}
    x, y = np.log(list(beyond.values())), np.log([scatter[k] for k in beyond])
    slope = float(np.polyfit(x, y, 1)[0])
    return float(np.clip(1 - slope, 0.5, 1.0))


if __name__ == "__main__":
    main()
