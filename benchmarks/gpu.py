"""Measure the GPU path: feature pass, training, decoding, memory, the commands, the gpu tests.

One part after the other, each in a process of its own and with a time limit. A part whose limit
no longer fits into 8 minutes is left to the next start. Every part is written to --out as soon as
it has ended. Parts that are there are not measured again, unless they failed, or with --redo. A
part that fails is written with its error, and the next one goes on. Networks other than the
embedded one have random weights: they are for speed only. Nothing needs a network connection.

Run:      python benchmarks/gpu.py --out gpu.json
          python benchmarks/gpu.py --device cpu --smoke --out smoke.json    # tests the script
Cost:     at most 8 minutes on one GPU per start; perhaps two starts.
Expected: the bars of docs/benchmarks/gpu.md; no CUDA machine was at hand so far.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu_table import Found, print_table
from PIL import Image

from strategies.core.devices import choose_precision, device_name, make_device

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "benchmarks" / "gpu_parts.py"
NETWORKS = ("cnn", "vit", "resnet")
COMPILED = ("cnn", "vit")
"""Networks that are compiled, too: that takes most of a minute each."""
TOTAL_S = 8 * 60
"""Time limit of one start of the script."""
ADVISE, AUTO = (f"from advisor.cli.app import tl_{n}; tl_{n}()" for n in ("advise", "auto"))
RUN_S = 60
"""Time limit of ``tl-auto run``; `SMOKE_RUN_S` in a smoke run."""
SMOKE_RUN_S = 10
N_GENERATED, GENERATED_PX, N_CLASSES = 3000, 256, 5
"""Number, side and classes of generated images; a smoke run has `N_SMOKE` images."""
N_SMOKE = 90
VERDICT = re.compile(r"(\d+) (passed|failed|skipped|xfailed|xpassed|errors?|deselected)")
LAST_WORDS = 400
"""Characters of the output of a part that failed."""

PART_ERRORS = (RuntimeError, ValueError, LookupError, OSError, subprocess.TimeoutExpired)
"""What a part that fails, takes too long, or prints no answer raises."""


@dataclass(frozen=True)
class Bench:
    """What all parts share: the device, the images, and a folder for what they leave behind."""

    device: str
    data: Path
    scratch: Path
    smoke: bool

    def process(self, command: Sequence[object], limit_s: float) -> str:
        """Run a command; return what it prints.

        Raises
        ------
        RuntimeError
            If it fails, with the end of its output.
        subprocess.TimeoutExpired
            If it takes longer than its limit.
        """
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-LAST_WORDS:])
        return done.stdout


@dataclass(frozen=True)
class Part:
    """A part: how it is measured, and its limit in seconds."""

    measure: Callable[[Bench, float], Found]
    limit_s: float


def measured_by_parts(part: str, network: str, bench: Bench, limit_s: float) -> Found:
    """Measure a part of `gpu_parts.py` with one network."""
    command = [PARTS, part, "--network", network, "--device", bench.device]
    command += ["--images", bench.data, *(["--smoke"] if bench.smoke else [])]
    found: Found = json.loads(bench.process(command, limit_s).splitlines()[-1])
    return found


def advise(bench: Bench, limit_s: float) -> Found:
    """Time ``tl-advise`` with an empty cache, from the start of its process to its end."""
    options = ["--device", bench.device, "--cache-dir", bench.scratch / "advise", "--json"]
    options += ["--input-px", 32] if bench.smoke else []
    start = time.perf_counter()
    answer = json.loads(bench.process(["-c", ADVISE, bench.data, *options], limit_s))
    profile = answer["profile"]
    return {
        "seconds": time.perf_counter() - start,
        "n": profile["n_measured"],
        "similarity": profile["similarity"]["score"]["mid"],
        "best": answer["recommendations"][0]["strategy"],
    }


def run(bench: Bench, limit_s: float) -> Found:
    """Time ``tl-auto run --time 60s`` from the start of its process to its end."""
    out = bench.scratch / "run"
    options = ["--device", bench.device, "--cache-dir", bench.scratch / "run-cache", "--quiet"]
    options += ["--time", f"{SMOKE_RUN_S if bench.smoke else RUN_S}s", "--out", out]
    options += ["--input-px", 32] if bench.smoke else []
    start = time.perf_counter()
    bench.process(["-c", AUTO, "run", bench.data, *options], limit_s)
    seconds = time.perf_counter() - start
    outcome = json.loads((out / "outcome.json").read_text(encoding="utf-8"))
    trials = (out / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "seconds": seconds,
        "trials": len(trials),
        "best": outcome["best"]["strategy"],
        "accuracy": outcome["test_accuracy"]["mid"],
    }


def gpu_tests(bench: Bench, limit_s: float) -> Found:
    """Run the tests that need a GPU; return how many passed, failed and were skipped."""
    where = ROOT / "tests" / "gpu" / ("test_memory.py" if bench.smoke else "")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(where)],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    counts = {name: int(n) for n, name in VERDICT.findall(lines[-1] if lines else "")}
    if not counts:
        raise RuntimeError((done.stdout + done.stderr)[-LAST_WORDS:])
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"counts": counts, "failed": failed}


PLAN = {
    **{f"features {n}": Part(partial(measured_by_parts, "features", n), 35) for n in NETWORKS},
    **{f"training {n}": Part(partial(measured_by_parts, "training", n), 35) for n in NETWORKS},
    "tl-advise": Part(advise, 30),
    "tl-auto run": Part(run, RUN_S + 20),
    "decoding": Part(partial(measured_by_parts, "decoding", NETWORKS[0]), 20),
    "gpu tests": Part(gpu_tests, 200),
    **{
        f"compiled-{what} {n}": Part(partial(measured_by_parts, f"compiled-{what}", n), limit_s)
        for n in COMPILED
        for what, limit_s in (("features", 60), ("training", 90))
    },
}
"""All parts in order; `TOTAL_S` limits their sum."""
SMOKE_PARTS = (
    "features cnn",
    "training resnet",
    "tl-advise",
    "tl-auto run",
    "decoding",
    "gpu tests",
    "compiled-features vit",
    "compiled-training vit",
)
"""Parts of a smoke run: everything that is measured, with one network each."""


def measure(plan: dict[str, Part], bench: Bench, out: Path, *, redo: bool = False) -> Found:
    """Measure the parts that are missing or failed before; write each one as it ends.

    A part whose limit does not fit into the rest of `TOTAL_S` is not started.
    """
    begun_s, slower = time.perf_counter(), 10 if bench.smoke else 1
    machine = describe(bench)
    results: Found = {"machine": machine, "parts": {}}
    if out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
        if results["machine"] != machine:
            raise SystemExit(
                f"{out} holds parts of another machine or version: {results['machine']} instead "
                f"of {machine}. Give another --out."
            )
    for name, part in plan.items():
        if "error" not in results["parts"].get(name, {"error": ""}) and not redo:
            continue
        start = time.perf_counter()
        if start - begun_s + slower * part.limit_s > slower * TOTAL_S:
            print(f"{name}: no time left, start the script again", file=sys.stderr)
            continue
        try:
            found = part.measure(bench, slower * part.limit_s)
        except PART_ERRORS as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        found["part_s"] = round(time.perf_counter() - start, 1)
        results["parts"][name] = found
        out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"{name}: {found.get('error', 'done')} ({found['part_s']} s)", file=sys.stderr)
    return results


def describe(bench: Bench) -> Found:
    """Return what the numbers depend on: device, precision, cores, and the version of torch."""
    device = make_device(bench.device)
    return {
        "device": device_name(device),
        "precision": str(choose_precision(device)),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "images": bench.data.name,
        "smoke": bench.smoke,
    }


def write_images(root: Path, n: int) -> Path:
    """Write class folders of n generated JPEG files, blurred noise in a colour of its class."""

    def write(i: int) -> None:
        rng = np.random.default_rng(i)
        label = i % N_CLASSES
        small = rng.normal(128, 50, (16, 16, 3)) + 40 * np.eye(N_CLASSES, 3)[label]
        image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
        large = image.resize((GENERATED_PX, GENERATED_PX), Image.Resampling.BICUBIC)
        large.save(root / f"class{label}" / f"{i:05d}.jpg", quality=90)

    for label in range(N_CLASSES):
        (root / f"class{label}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(n)))
    return root


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="default: ../shared/data; smoke: none")
    parser.add_argument("--set", default="flowers5", help="generated images where it is absent")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", nargs="+", choices=PLAN, help="default: all")
    parser.add_argument("--redo", action="store_true", help="measure again what is there")
    parser.add_argument("--smoke", action="store_true", help="tiny: to test this script")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        root, scratch = args.data_root or ROOT.parent / "shared" / "data", Path(folder)
        data = (root / args.set).resolve()
        if not data.is_dir() or (args.smoke and args.data_root is None):
            n = N_SMOKE if args.smoke else N_GENERATED
            data = write_images(scratch / "generated", n)
        bench = Bench(args.device, data, scratch, args.smoke)
        parts = args.parts or (SMOKE_PARTS if args.smoke else PLAN)
        plan = {name: PLAN[name] for name in parts}
        print_table(measure(plan, bench, args.out, redo=args.redo))


if __name__ == "__main__":
    main()
