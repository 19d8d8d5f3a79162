"""The table of `gpu.py`: every figure, its bar, and whether it meets the bar.

Run:      imported by gpu.py.
Cost:     none of its own.
Expected: nothing is measured here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Found = dict[str, Any]
ROWS_DIFFER = 0.02
"""Euclidean norm of the difference that compiling makes to rows, relative to that of the rows."""
Row = tuple[str, str, str, bool | None]
"""A figure, its value, its bar, and whether it meets the bar; None: not measured, or no bar."""


def ratio(name: str, a: float | None, b: float | None, low: float, high: float = np.inf) -> Row:
    """Return a row with a ratio that must lie between two bars."""
    bar = f"≥ {low}" if np.isinf(high) else f"{low} to {high}"
    if a is None or b is None:
        return name, "not measured", bar, None
    return name, f"{a / b:.2f}", bar, low <= a / b <= high


def memory(name: str, found: Found) -> list[Row]:
    """Return the rows of the peak memory and of its prediction."""
    measured, predicted = found["peak_bytes"], found["predicted_bytes"]
    text = "not applicable" if measured is None else f"{measured / 2**20:,.0f} MB"
    row = ratio(f"{name}: predicted / measured peak memory", predicted, measured, 0.8, 1.2)
    return [(f"{name}: peak memory", text, "", None), row]


def feature_rows(name: str, found: Found) -> list[Row]:
    """Return the rows of a feature pass."""
    speeds = {"from files": "from_files", "decoding taken out": "without_decoding"}
    speeds |= {"bare forward": "bare_forward", "decoding alone": "decoding"}
    rows: list[Row] = [
        (f"{name}: {what}", f"{found[key]:,.0f} images/s", "", None)
        for what, key in speeds.items()
    ]
    bare = found["bare_forward"]
    rows.append(ratio(f"{name}: pass / bare forward", found["without_decoding"], bare, 0.85))
    slower = min(bare, found["decoding"])
    rows.append(ratio(f"{name}: from files / slower half", found["from_files"], slower, 0.85))
    return rows + memory(name, found)


def training_rows(name: str, found: Found) -> list[Row]:
    """Return the rows of a training run."""
    speeds = {"from files": "from_files", "batch on the device": "on_device"}
    speeds |= {"plain loop": "plain_loop"}
    rows: list[Row] = [
        (f"{name}: {what}", f"{found[key]:,.0f} images/s", "", None)
        for what, key in speeds.items()
    ]
    rows.append(ratio(f"{name}: ours / plain loop", found["on_device"], found["plain_loop"], 0.9))
    share = f"{100 * found['share_of_peak']:.1f}% ({found['peak_is']})"
    rows.append((f"{name}: share of the peak", share, "", None))
    syncs = found["syncs_between_checks"]
    if syncs is None:
        rows.append((f"{name}: host syncs in a step", "not applicable", "0", None))
    else:
        text = f"{syncs} ({found['syncs_per_step']:.2f} with checks)"
        rows.append((f"{name}: host syncs in a step", text, "0", syncs == 0))
    return rows + memory(name, found)


def compiled_row(name: str, eager: float, found: Found) -> Row:
    """Return the row of what is compiled: its rate, what it saves, and what compiling takes."""
    saving = 1 - eager / found["rate"]
    saved = f"{100 * abs(saving):.0f}% {'more' if saving < 0 else 'less'} time"
    took = f"{found['seconds']:.0f} s of compiling"
    return name, f"{found['rate']:,.0f} images/s ({saved}, {took})", "", None


def compiled_feature_rows(name: str, found: Found) -> list[Row]:
    """Return the rows of a feature pass that is compiled."""
    eager, error = found["eager"], found["rows_differ"]
    return [
        (f"{name}: not compiled", f"{eager:,.0f} images/s", "", None),
        compiled_row(f"{name}: with CUDA graphs", eager, found["cuda_graphs"]),
        compiled_row(f"{name}: without", eager, found["compiled"]),
        (f"{name}: rows differ by", f"{error:.1e}", f"≤ {ROWS_DIFFER}", error <= ROWS_DIFFER),
    ]


def compiled_training_rows(name: str, found: Found) -> list[Row]:
    """Return the rows of a training run that is compiled."""
    return [
        (f"{name}: not compiled", f"{found['eager']:,.0f} images/s", "", None),
        compiled_row(f"{name}: compiled", found["eager"], found["compiled"]),
    ]


def decoding_rows(name: str, found: Found) -> list[Row]:
    """Return the rows of decoding with Pillow and on the device."""
    levels = f"{found['largest_difference']} levels, {found['mean_difference']:.2f} on average"
    workers = f"{name}: Pillow, {found['workers']} threads"
    return [
        (workers, f"{found['pillow']:,.0f} images/s", "", None),
        (f"{name}: on the device", f"{found['on_device']:,.0f} images/s", "", None),
        (f"{name}: pixels differ by at most", levels, "", None),
    ]


def rows_of(name: str, found: Found) -> list[Row]:
    """Return the rows of a part."""
    if "error" in found:
        return [(name, found["error"].splitlines()[0], "", False)]
    kind = name.split()[0]
    if kind in ROWS:
        return ROWS[kind](name, found)
    if name == "gpu tests":
        counts = found["counts"]
        n_bad = sum(counts.get(k, 0) for k in ("failed", "error", "errors", "xpassed"))
        text = ", ".join(f"{n} {what}" for what, n in counts.items())
        return [(name, text, "none failed", n_bad == 0 if counts.get("passed") else None)]
    text = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in found.values())
    return [(f"{name}: {', '.join(found)}", text, "", None)]


ROWS: dict[str, Callable[[str, Found], list[Row]]] = {
    "features": feature_rows,
    "training": training_rows,
    "compiled-features": compiled_feature_rows,
    "compiled-training": compiled_training_rows,
    "decoding": decoding_rows,
}
"""Rows by the first word of a part's name."""


def print_table(results: Found) -> None:
    """Print all parts as one table."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    print(f"{machine}\n\n| figure | value | bar | |\n|---|---|---|---|")
    for name, found in results["parts"].items():
        for what, value, bar, meets in rows_of(name, found):
            verdict = {True: "yes", False: "**no**", None: ""}[meets]
            print(f"| {what} | {value} | {bar} | {verdict} |")
