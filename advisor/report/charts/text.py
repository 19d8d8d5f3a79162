"""Text charts for the terminal: quadrant map and depth profile, 80 columns, no colour."""

from advisor.decide.quadrant import RULES, SIMILAR_FROM
from advisor.types.advice import Advice, Domain, Size
from advisor.types.profile import Profile

REACH = 3.0
"""Powers of ten that the map shows on either side of the threshold; points beyond are clipped."""
_HALF, _ROWS, _BAR = 24, 3, 20


def quadrant_map(advice: Advice) -> tuple[str, ...]:
    """Draw the four quadrants with their rules, and the dataset as a point with bars.

    The vertical bar is a 90% interval. The ends of the horizontal bar are two measures of size.
    """
    width = 2 * _HALF + 1
    rows = [[" "] * width for _ in range(2 * _ROWS)]
    for row in rows:
        row[_HALF] = "│"
    size, similarity = advice.quadrant.size_decades, advice.quadrant.similarity
    here = _row(similarity.mid)
    places: tuple[tuple[Size, int], ...] = (("small", 1), ("large", _HALF + 2))
    halves: tuple[tuple[Domain, int], ...] = (("similar", 0), ("different", _ROWS))
    for domain, top in halves:
        label_row = top if here != top else top + _ROWS - 1
        for size_name, left in places:
            _write(rows[label_row], left, RULES[size_name, domain])
    for r in range(_row(similarity.high), _row(similarity.low) + 1):
        rows[r][_column(size.mid)] = "|"
    for c in range(_column(size.low), _column(size.high) + 1):
        rows[here][c] = "-"
    rows[here][_column(size.mid)] = "●"
    return _framed(["".join(row) for row in rows])


def _framed(rows: list[str]) -> tuple[str, ...]:
    line = "─" * _HALF
    body = [f"     │{row}│" for row in rows]
    return (
        f"     {'few images':^{_HALF + 2}}{'many images':^{_HALF}}",
        f" 1.0 ┌{line}┬{line}┐",
        *body[:_ROWS],
        f" {SIMILAR_FROM:.1f} ├{line}┼{line}┤",
        *body[_ROWS:],
        f" 0.0 └{line}┴{line}┘",
        f"     ÷1000{'threshold':^{2 * _HALF - 7}}×1000",
        "     (y: similarity to ImageNet; x: images relative to the threshold)",
    )


def depth_profile(profile: Profile) -> tuple[str, ...]:
    """Draw BatchNorm shift and probe accuracy by depth, with random weights if measured."""
    svms = {p.depth: p for p in profile.probes if p.loss == "squared_hinge"}
    random = {p.depth: p for p in profile.random_probes}
    statistics = profile.backbone_statistics
    lines = [f"{'depth':<17}{'BN shift':>10}  {'linear SVM accuracy':<{_BAR + 9}}"]
    lines[0] += "  random weights" if random else ""
    for depth, name in enumerate(profile.depth_names, start=1):
        shift = None if statistics is None else statistics.shift_at(depth)
        nats = "" if shift is None else f"{shift:.3f} nat"
        accuracy = svms[depth].accuracy
        line = f"{depth} {name:<15.15} {nats:>9}  {bar(accuracy.mid)} {accuracy.percent()}"
        if depth in random:
            line += f"  {100 * random[depth].accuracy.mid:.1f}%"
        lines.append(line)
    return tuple(lines)


def bar(share: float) -> str:
    """Draw a fraction as a bar."""
    n = round(_BAR * share)
    return "█" * n + "░" * (_BAR - n)


def _column(decades: float) -> int:
    place = round((decades + REACH) / (2 * REACH) * 2 * _HALF)
    return min(max(place, 0), 2 * _HALF)


def _row(similarity: float) -> int:
    within = similarity - SIMILAR_FROM if similarity >= SIMILAR_FROM else similarity
    share = within / (1 - SIMILAR_FROM if similarity >= SIMILAR_FROM else SIMILAR_FROM)
    row = _ROWS - 1 - min(int(share * _ROWS), _ROWS - 1)
    return row if similarity >= SIMILAR_FROM else _ROWS + row


def _write(row: list[str], left: int, text: str) -> None:
    row[left : left + len(text)] = text
