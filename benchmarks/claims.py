"""What the sources claim, tried on these data: a table of what held and what did not.

    python benchmarks/claims.py --data-root FOLDER --cache-dir FOLDER --plot FILE.svg

The first claim is computed here (a head on features of 1 picture a class against a head on raw
pixels of 10, five draws a set); the others are read from the suite's rows and their evidence, and
from ``claims.jsonl``: entries of the grid that only some sets were run with,

    python benchmarks/run_suite.py --out benchmarks/claims.jsonl --no-evidence --seeds 0 \
        --n-per-class 5 20 100 --sets SET ... --grid 11 12 13 14 15 16 17
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_profiles, read_rows
from run_suite import PLAIN, REFERENCE_SET, subsample
from scipy.stats import spearmanr
from vl_convert import vegalite_to_svg

from advisor.types import Profile
from strategies.core.backbone import Backbone, load_backbone
from strategies.core.features import eval_pixels, extract_features
from strategies.core.probes import fit_head
from strategies.core.run import RunContext, make_context
from strategies.core.task import Split, labels_of, load_task

PER_CLASS, DRAWS, PIXEL_SIDE = 10, 5, 32
FEATURES_STRENGTH, PIXELS_STRENGTH = 1e-3, 1e-2
EXTRA = EVIDENCE.parent / "claims.jsonl"


@dataclass(frozen=True)
class Verdict:
    """A claim, where it comes from, and on how many cases it held."""

    claim: str
    source: str
    held: int
    cases: int
    detail: str

    def row(self) -> str:
        """Return a line of the table."""
        return f"| {self.claim} | {self.source} | {self.held} of {self.cases} | {self.detail} |"


def one_against_ten(root: Path, names: list[str], ctx: RunContext, px: int) -> Verdict:
    """Compare features of one picture a class with raw pixels of ten."""
    backbone = load_backbone(input_px=px)
    held, said = 0, []
    for name in names:
        gaps = []
        whole = load_task(root / name)
        for draw in range(DRAWS):
            task = subsample(whole, PER_CLASS, draw)
            assert task.test is not None
            ten = task.fit_split
            one = _first_of_each(ten)
            gaps.append(
                _accuracy(one, task.test, task.n_classes, _features(backbone, ctx), 1)
                - _accuracy(ten, task.test, task.n_classes, _pixels(backbone), 10)
            )
        held += float(np.mean(gaps)) > 0
        said.append(f"{name} {100 * np.mean(gaps):+.0f}")
        print(f"  {said[-1]} points", flush=True)
    return Verdict(
        "features with 1 picture a class beat raw pixels with 10",
        "DeCAF 2014",
        held,
        len(names),
        "points: " + ", ".join(said),
    )


def _first_of_each(split: Split) -> Split:
    return tuple({p.label: p for p in reversed(split)}.values())


Reader = Callable[[Split], NDArray[np.float32]]


def _features(backbone: Backbone, ctx: RunContext) -> Reader:
    return lambda split: extract_features(split, backbone, ctx).pooled[-1]


def _pixels(backbone: Backbone) -> Reader:
    small = replace(backbone, input_px=PIXEL_SIDE)

    def read(split: Split) -> NDArray[np.float32]:
        rows = [eval_pixels(p.path, small).ravel() for p in split]
        return np.stack(rows).astype(np.float32) / 255

    return read


def _accuracy(train: Split, test: Split, n_classes: int, read: Reader, n_per_class: int) -> float:
    strength = FEATURES_STRENGTH if n_per_class == 1 else PIXELS_STRENGTH
    head = fit_head(read(train), labels_of(train), n_classes, strength)
    return float(np.mean(head.scores(read(test)).argmax(axis=1) == labels_of(test)))


def on_par(profiles: dict[Case, Profile]) -> Verdict:
    """Compare softmax regression with an SVM on the same last features, cross-validated."""
    gaps = []
    for profile in profiles.values():
        last = len(profile.depth_names)
        svm = next(p for p in profile.probes if p.depth == last and p.loss == "squared_hinge")
        gaps.append(svm.gain_over_penultimate)
    equal = sum(g.low <= 0 <= g.high for g in gaps)
    mids = 100 * np.array([g.mid for g in gaps])
    return Verdict(
        "logistic regression and SVM are on par on the last features",
        "DeCAF 2014, Razavian 2014",
        equal,
        len(gaps),
        f"SVM minus softmax {mids.mean():+.1f} points on average, {mids.min():+.1f} to "
        f"{mids.max():+.1f}; par: 90% interval contains 0",
    )


def earlier_when_far(profiles: dict[Case, Profile]) -> Verdict:
    """See whether the best depth lies earlier the farther the domain."""
    far, share = [], []
    for profile in profiles.values():
        if profile.similarity is None:
            continue
        svms = [p for p in profile.probes if p.loss == "squared_hinge" and p.depth > 0]
        best = max(svms, key=lambda p: p.accuracy.mid).depth
        far.append(1 - profile.similarity.score.mid)
        share.append(best / len(profile.depth_names))
    distant = [s for f, s in zip(far, share, strict=True) if f > 0.5]
    rho = float(spearmanr(far, share).statistic) if len(far) > 2 else float("nan")
    return Verdict(
        "the farther the domain, the earlier the best depth",
        "Yosinski 2014, CS231n",
        sum(s < 1 for s in distant),
        len(distant),
        f"held: best depth before the last at similarity below 0.5; rank correlation of distance "
        f"and best depth {rho:+.2f} over {len(far)} cases",
    )


def _pairs(
    rows: list[Row], first: Callable[[Row], bool], second: Callable[[Row], bool]
) -> Iterator[tuple[Case, float]]:
    """Yield the accuracy of the first minus that of the second, where a case has both."""
    cases: dict[Case, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for i, chosen in enumerate((first, second)):
            if chosen(row):
                cases[case_of(row)][i] = row["accuracy"]
    yield from ((case, found[0] - found[1]) for case, found in cases.items() if len(found) == 2)


def _fixed(strategy: str, **given: Any) -> Callable[[Row], bool]:
    """Tell the rows of a fine-tuning whose steps are taken in full, at 1e-3 unless given."""
    grid = {"lr": 1e-3, **PLAIN, **given}
    return lambda r: r["strategy"] == strategy and r["grid"] == grid


def _with_error(gaps: list[float]) -> str:
    """Write the mean of some differences in points, with its standard error."""
    if len(gaps) < 2:
        return f"{100 * np.mean(gaps or [np.nan]):+.1f}"
    error = float(np.std(gaps, ddof=1)) / np.sqrt(len(gaps))
    return f"{100 * np.mean(gaps):+.1f} ± {100 * error:.1f}"


def smaller_steps_when_near(rows: list[Row], profiles: dict[Case, Profile]) -> Verdict:
    """See whether a small learning rate is the better one near ImageNet and not far from it."""
    found = []
    for case, gap in _pairs(rows, _fixed("full_fine_tune", lr=3e-4), _fixed("full_fine_tune")):
        profile = profiles.get(case)
        if profile is not None and profile.similarity is not None:
            found.append((profile.similarity.score.mid, gap))
    held = sum((gap > 0) == (score >= 0.5) for score, gap in found)
    near = [gap for score, gap in found if score >= 0.5]
    far = [gap for score, gap in found if score < 0.5]
    return Verdict(
        "small learning rates for the body near ImageNet, large ones far from it",
        "CS231n",
        held,
        len(found),
        f"lr 3e-4 minus 1e-3, full fine-tuning, steps taken in full: "
        f"{_with_error(near)} points near, {_with_error(far)} far",
    )


def freezing_when_few(rows: list[Row]) -> Verdict:
    """See whether freezing the first two or three stages beats training all, whatever the size."""
    held, by_size = [], defaultdict(list)
    for (_, n, _, _), by_stage in freezing(rows).items():
        gap = (by_stage[2] + by_stage[3]) / 2 - by_stage[0]
        held.append(gap > 0)
        by_size[n].append(gap)
    said = [f"{_with_error(gaps)} with {n} a class" for n, gaps in sorted(by_size.items())]
    return Verdict(
        "with few pictures freezing the first two or three stages beats training all",
        "Soekhoe 2016",
        sum(held),
        len(held),
        "sets and sizes where it does; mean of 2 and 3 frozen minus none, learning rates by "
        "evidence, points: " + ", ".join(said),
    )


def freezing_by_size(rows: list[Row]) -> Verdict:
    """See with how many pictures a class two or three frozen stages beat none."""
    none, by_size = _fixed("full_fine_tune"), defaultdict(list)
    for frozen in (_fixed("partial_fine_tune", frozen_stages=2), _fixed("partial_fine_tune")):
        for (name, n, _, _), gap in _pairs(rows, frozen, none):
            by_size[n].append((name, gap))
    held, said = [], []
    for n, gaps in sorted(by_size.items()):
        by_set: dict[str, list[float]] = defaultdict(list)
        for name, gap in gaps:
            by_set[name].append(gap)
        means = [float(np.mean(of_set)) for of_set in by_set.values()]
        held += means
        said.append(f"{_with_error(means)} with {n} a class")
    return Verdict(
        "the fewer pictures, the more freezing the first two or three stages gains",
        "Soekhoe 2016",
        sum(gap > 0 for gap in held),
        len(held),
        "sets and sizes where it gained; mean of 2 and 3 frozen minus none, lr 1e-3, points: "
        + ", ".join(said),
    )


def freezing(rows: list[Row]) -> dict[Case, dict[int, float]]:
    """Return accuracy by number of frozen stages, case by case, where 0, 2 and 3 were tried.

    Learning rates are those by default; with all stages frozen only the head is trained.
    """
    found: dict[Case, dict[int, float]] = defaultdict(dict)
    heads = {case_of(row): row["accuracy"] for row in rows if _is_default(row, "linear_probe")}
    for row in rows:
        if row["strategy"] == "partial_fine_tune" and set(row["grid"]) == {"frozen_stages"}:
            found[case_of(row)][row["grid"]["frozen_stages"]] = row["accuracy"]
        elif _is_default(row, "full_fine_tune"):
            found[case_of(row)][0] = row["accuracy"]
    curves = {case: dict(sorted(by.items())) for case, by in found.items() if {0, 2, 3} <= set(by)}
    for case, by_stage in curves.items():
        if case in heads:
            by_stage[max(by_stage) + 1] = heads[case]
    return curves


def _is_default(row: Row, strategy: str) -> bool:
    return row["strategy"] == strategy and not row["grid"]


def freezing_table(rows: list[Row]) -> str:
    """Return what each number of frozen stages gains over none, by size, as Markdown."""
    gains: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (_, n, _, _), by_stage in freezing(rows).items():
        for k, accuracy in by_stage.items():
            if k:
                gains[n][k].append(accuracy - by_stage[0])
    stages = sorted({k for by_stage in gains.values() for k in by_stage})
    lines = [
        "| pictures a class (sets), frozen: | " + " | ".join(map(str, stages)) + " |",
        "|---|" + "---|" * len(stages),
    ]
    for n, by_stage in sorted(gains.items()):
        cells = " | ".join(_with_error(by_stage[k]) for k in stages)
        lines.append(f"| {n} ({len(by_stage[stages[0]])}) | {cells} |")
    return "\n".join(lines)


def augmented_is_better(rows: list[Row]) -> Verdict:
    """See whether an SVM on six views of every picture beats one on a single view."""

    def last_depth(views: int) -> Callable[[Row], bool]:
        return lambda r: r["grid"] == {"depth": -1, "views": views}

    by_size: dict[int, list[float]] = defaultdict(list)
    for (_, n, _, _), gap in _pairs(rows, last_depth(6), last_depth(1)):
        by_size[n].append(gap)
    gaps = [gap for of_size in by_size.values() for gap in of_size]
    said = [f"{_with_error(of_size)} with {n} a class" for n, of_size in sorted(by_size.items())]
    return Verdict(
        "an SVM on augmented pictures beats one on plain pictures",
        "Razavian 2014 (CNNaug-SVM)",
        sum(gap > 0 for gap in gaps),
        len(gaps),
        "sets and sizes; six views minus one, last depth, points: " + ", ".join(said),
    )


def plot(rows: list[Row]) -> str:
    """Draw accuracy over frozen stages, a panel a size, as SVG; the best of each is filled."""
    values = [
        {
            "set": name,
            "pictures": n,
            "frozen": k,
            "accuracy": 100 * accuracy,
            "best": accuracy == max(by.values()),
        }
        for (name, n, _, _), by in freezing(rows).items()
        for k, accuracy in by.items()
    ]
    x = {"field": "frozen", "type": "quantitative", "title": "stages frozen"}
    x["axis"] = {"tickMinStep": 1}
    y = {"field": "accuracy", "type": "quantitative", "title": "test accuracy, %"}
    y["scale"] = {"zero": False}
    shown = {"x": x, "y": y, "color": {"field": "set", "type": "nominal", "title": None}}
    best = {"condition": {"test": "datum.best", "value": 1}, "value": 0}
    mark = {"type": "line", "point": {"filled": False, "fill": "white", "size": 40}}
    point = {"type": "point", "filled": True, "size": 60}
    layers = [
        {"mark": mark, "encoding": shown},
        {"mark": point, "encoding": {**shown, "opacity": best}},
    ]
    column = {"field": "pictures", "type": "ordinal", "title": "pictures a class"}
    spec = {
        "data": {"values": values},
        "padding": {"left": 5, "top": 5, "bottom": 5, "right": 30},  # fonts differ in width
        "facet": {"column": column},
        "spec": {"width": 200, "height": 240, "layer": layers},
        "resolve": {"scale": {"y": "independent"}},
    }
    return vegalite_to_svg(spec)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--extra", type=Path, default=EXTRA, help="rows of some sets alone")
    parser.add_argument("--plot", type=Path, help="where to draw the claim on freezing, as SVG")
    parser.add_argument("--sets", nargs="*", help="default: every folder of the data root")
    parser.add_argument("--input-px", type=int, default=96)
    args = parser.parse_args()
    names = args.sets or sorted(
        p.name for p in args.data_root.iterdir() if p.is_dir() and p.name != REFERENCE_SET
    )
    profiles, suite = read_profiles(args.evidence), read_rows(args.results)
    extra = read_rows(args.extra)
    ctx = make_context(cache_dir=args.cache_dir)
    verdicts = [
        one_against_ten(args.data_root, names, ctx, args.input_px),
        on_par(profiles),
        earlier_when_far(profiles),
        smaller_steps_when_near(suite, profiles),
        freezing_when_few(suite + extra),
        freezing_by_size(suite),
        augmented_is_better(extra),
    ]
    print("| claim | source | held | numbers |\n|---|---|---|---|")
    for verdict in verdicts:
        if verdict.cases:
            print(verdict.row())
    print("\n" + freezing_table(suite + extra))
    if args.plot is not None:
        args.plot.write_text(plot(suite + extra))


if __name__ == "__main__":
    main()
