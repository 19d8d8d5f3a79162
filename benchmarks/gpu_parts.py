"""Measure one part of `gpu.py` in a process of its own, and print it as JSON.

`gpu.py` starts this script once per part, so that a part can neither disturb the others nor take
longer than its limit. A part prints one JSON object. Rates are images per second.

Run:      python benchmarks/gpu_parts.py features --network cnn --device cuda --images FOLDER
Cost:     up to half a minute per part on a fast GPU; compiled, a minute more.
Expected: the bars that docs/benchmarks/gpu.md states.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_features import measure_compiled_features, measure_decoding, measure_features
from gpu_setup import NETWORKS, Setup, load_network
from gpu_training import measure_compiled_training, measure_training

from strategies.core.context import make_context
from strategies.data.dataset import load_dataset
from strategies.training.loop import ROUNDS

MEASURES = {
    "features": measure_features,
    "training": measure_training,
    "decoding": measure_decoding,
    "compiled-features": measure_compiled_features,
    "compiled-training": measure_compiled_training,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one part and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=MEASURES)
    parser.add_argument("--network", choices=NETWORKS, default="cnn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="tiny: to test this script")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            load_dataset(args.images),
            load_network(args.network, Path(folder), smoke=args.smoke),
            make_context(device=args.device, cache_dir=Path(folder) / "cache"),
            batch_size=8 if args.smoke else args.batch_size,
            seconds=0.1 if args.smoke else 2.0,
            steps=ROUNDS if args.smoke else 20 * ROUNDS,
            compiler="eager" if args.smoke else "inductor",
        )
        print(json.dumps(MEASURES[args.part](setup, folder)))


if __name__ == "__main__":
    main()
