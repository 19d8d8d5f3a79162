"""Measure the ImageNet reference statistics of the embedded backbones, and write them to files.

Writes ``advisor/similarity/references/<backbone>.safetensors``: moments of every BatchNorm layer
at several input sizes, and penultimate activations (8 bits), of 500 images. These are a fixed
random half of ``../shared/data/imagenet_samples``; the other half is left for tests. Only numbers
are stored, no image is copied.

Run:      python benchmarks/make_reference.py [BACKBONE ...]
Cost:     about 10 minutes on two cores.
Expected: the shipped references, apart from their dates.
"""

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared_datasets import imagenet_halves

from advisor.similarity.reference import FOLDER, Reference, make_reference, write_reference
from strategies.core.context import make_context
from strategies.models.backbone import load_backbone
from strategies.models.features import extract_features

SIZES = {
    "tf_efficientnet_lite0": (96, 128, 160, 192, 224),
    "tf_efficientnet_lite1": (128, 240),
    "tf_efficientnet_lite2": (128, 260),
    "mobilenetv2_100": (96, 224),
}
FEATURES = {
    "tf_efficientnet_lite0": (128, 224),
    "tf_efficientnet_lite1": (240,),
    "tf_efficientnet_lite2": (260,),
    "mobilenetv2_100": (224,),
}
NAME = "500 ImageNet images"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the reference of every backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the references")
    parser.add_argument("backbones", nargs="*", default=list(SIZES), help="default: all")
    options = parser.parse_args(argv)
    ctx = make_context(cache_dir=options.cache_dir)
    images, _ = imagenet_halves()
    for name in options.backbones:
        whole: Reference | None = None
        for px in SIZES[name]:
            backbone = load_backbone(name, input_px=px)
            about = {
                "source": "a fixed random half of imagenet_samples",
                "script": "benchmarks/make_reference.py",
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "precision": str(ctx.precision).removeprefix("torch."),
            }
            features = extract_features(images, backbone, ctx)
            found = make_reference(NAME, backbone, features, about)
            if px not in FEATURES[name]:
                found = replace(found, features={})
            whole = found if whole is None else _merged(whole, found)
            print(f"{name} at {px} px: {len(images)} images", flush=True)
        assert whole is not None
        path = options.out / f"{name}.safetensors"
        write_reference(whole, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def _merged(one: Reference, other: Reference) -> Reference:
    return replace(
        one,
        moments={**one.moments, **other.moments},
        features={**one.features, **other.features},
        confident_share={**one.confident_share, **other.confident_share},
    )


if __name__ == "__main__":
    main()
