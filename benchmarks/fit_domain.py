"""Fit the curve from distance to similarity score, and place datasets as landmarks.

Reads the shipped reference of the embedded network and the datasets of ``../shared/data``; writes
``advisor/similarity/calibration.json``. The curve has three parameters. `same` is the 95%
quantile of the distance of fresh ImageNet samples of 30 images (half of the seen half of
imagenet_samples against its other half); its unseen half is not read. `far` is the distance of
the farthest dataset. `power` is chosen so that equal steps of the score have about equal noise:
it follows from how the standard deviation over samples of 50 images grows with the distance.

Landmarks are measured at the input size of the domain shift (96 px). The curve is fitted at
224 px, so that the similarities in the suite's rows stay what they are; fitted at 96 px
(``--curve-px 96``), it differs little (docs/benchmarks/similarity.md).

Run:      python benchmarks/fit_domain.py
Cost:     about 3 minutes on two cores once the features are cached.
Expected: the shipped calibration.json, apart from its date; docs/benchmarks/similarity.md.
"""

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shared_datasets import DESCRIPTIONS, imagenet_halves, images_of

import advisor.similarity.calibration
from advisor.similarity.bn_shift import SourceMoments, balanced, layer_shifts
from advisor.similarity.reference import Reference, make_reference, shipped_reference
from strategies.core.context import RunContext, make_context
from strategies.core.metrics import Labels
from strategies.data.dataset import labels_of
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.domain_shift import shift_network
from strategies.models.features import Features, extract_features
from strategies.models.moments import Moments

N_SAME, N_SCATTER, DRAWS = 30, 50, 100
MOST, CURVE_PX = 400, 224
MAPS = Path(advisor.similarity.calibration.__file__).with_name("calibration.json")


def rows_of(features: Features, rows: NDArray[np.int64]) -> Features:
    """Return the features of some images."""
    m = features.moments
    assert m is not None
    moments = Moments(m.mean[rows], m.square[rows], m.layer, m.layer_depth)
    return Features(tuple(p[rows] for p in features.pooled), moments, features.source_head)


def distance(features: Features, labels: Labels, source: SourceMoments) -> float:
    """Return the mean BatchNorm shift in nats against the moments of a reference."""
    assert features.moments is not None
    return float(layer_shifts(features.moments, balanced(labels), source).mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the curve, measure the landmarks, and write both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=MAPS)
    parser.add_argument("--curve-px", type=int, default=CURVE_PX, help="default: %(default)s")
    options = parser.parse_args(argv)
    ctx = make_context(cache_dir=options.cache_dir)
    backbone, ruler = load_backbone(input_px=options.curve_px), shift_network()
    reference = shipped_reference(backbone)
    if reference is None:
        raise SystemExit("The backbone has no reference: run benchmarks/make_reference.py.")
    seen, _ = imagenet_halves()
    imagenet = extract_features(seen, backbone, ctx)
    same = fresh_distance(imagenet, backbone)
    curve = fit(same, measured(backbone, reference, ctx))
    landmarks = {
        DESCRIPTIONS[name]: whole
        for name, (whole, _) in measured(ruler, reference, ctx, 0).items()
    }
    record = {
        "calibration": curve
        | {"landmarks": sorted(landmarks.items(), key=lambda landmark: landmark[1])},
        "provenance": {
            "script": "benchmarks/fit_domain.py",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "backbone": backbone.name,
            "digest": backbone.digest,
            "curve_px": options.curve_px,
            "landmarks_px": ruler.input_px,
            "images": f"500 of imagenet_samples, at most 1000 of each of {len(DESCRIPTIONS)} sets",
        },
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measured(
    backbone: Backbone, reference: Reference, ctx: RunContext, draws: int = DRAWS // 2
) -> dict[str, tuple[float, float]]:
    """Return the distance of every dataset, and its standard deviation over small samples.

    Parameters
    ----------
    draws
        Number of small samples; with 0, the standard deviations are 0.
    """
    source = reference.source(backbone.input_px)
    assert source is not None
    rng = np.random.default_rng(2)
    found = {}
    print(f"{backbone.name} at {backbone.input_px} px")
    for name in DESCRIPTIONS:
        images = images_of(name)
        features, labels = extract_features(images, backbone, ctx), labels_of(tuple(images))
        rows = rng.permutation(len(labels))[:MOST]
        whole = distance(rows_of(features, rows), labels[rows], source)
        scattered = []
        for _ in range(draws):
            rows = rng.permutation(len(labels))[:N_SCATTER]
            scattered.append(distance(rows_of(features, rows), labels[rows], source))
        found[name] = round(whole, 4), float(np.std(scattered)) if draws else 0.0
    for name in sorted(found, key=lambda name: found[name]):
        spread = f", sd at n = {N_SCATTER}: {found[name][1]:.4f}" if draws else ""
        print(f"  {name:18s} {found[name][0]:.4f}{spread}")
    return found


def fresh_distance(imagenet: Features, backbone: Backbone) -> float:
    """Return the 95% quantile of the distance of fresh ImageNet samples to a reference.

    Samples and reference are disjoint.
    """
    rng = np.random.default_rng(1)
    n = len(imagenet.pooled[-1])
    found = []
    for _ in range(DRAWS):
        order = rng.permutation(n)
        other = make_reference("", backbone, rows_of(imagenet, order[: n // 2]), {})
        source = other.source(backbone.input_px)
        assert source is not None
        rows = order[n // 2 :][:N_SAME]
        alone = np.zeros(N_SAME, dtype=np.int64)
        found.append(distance(rows_of(imagenet, rows), alone, source))
    return float(np.quantile(found, 0.95))


def fit(same: float, datasets: Mapping[str, tuple[float, float]]) -> dict[str, object]:
    """Fit the curve to distances and standard deviations; print it, also without each dataset."""
    whole = {k: w for k, (w, _) in datasets.items()}
    scatter = {k: s for k, (_, s) in datasets.items()}
    power = fit_power(whole, scatter, same)
    far = max(whole.values())
    without = [
        fit_power({k: v for k, v in whole.items() if k != out}, scatter, same) for out in whole
    ]
    print(f"same {same:.4f} far {far:.4f} power {power:.2f}")
    print(f"leaving a dataset out: power {min(without):.2f} to {max(without):.2f}, ", end="")
    print(f"far at least {sorted(whole.values())[-2]:.4f}")
    return {"same": round(same, 4), "far": round(far, 4), "power": round(power, 2)}


def fit_power(whole: dict[str, float], scatter: dict[str, float], same: float) -> float:
    """Return the power that makes the noise of the score about constant, in [0.5, 1]."""
    beyond = {k: v - same for k, v in whole.items() if v > same}
    x, y = np.log(list(beyond.values())), np.log([scatter[k] for k in beyond])
    slope = float(np.polyfit(x, y, 1)[0])
    return float(np.clip(1 - slope, 0.5, 1.0))


if __name__ == "__main__":
    main()
