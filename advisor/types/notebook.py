"""Advice and outcome as notebooks show them: HTML, and tables of pandas."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from advisor.types.durations import duration
from advisor.types.summary import ENDED, headline, result
from strategies.core.errors import TransferError

if TYPE_CHECKING:
    from pandas import DataFrame

    from advisor.types.advice import Advice, Finding, Recommendation
    from advisor.types.outcome import Outcome, TrialRecord
    from strategies.core.metrics import Interval

MAX_TRIALS = 20
"""Trials in the HTML of an outcome, the best ones; `to_frame` has all."""


def advice_html(advice: "Advice") -> str:
    """Return headline, strategies and findings as an HTML fragment; all text is escaped."""
    is_void = advice.void is not None
    rows = [_strategy_cells(n, r) for n, r in enumerate(advice.recommendations, start=1)]
    columns = ("", "strategy", "expected accuracy", "input", "fit time", "accuracy is")
    reasons = () if is_void else advice.best.reasons[-1:]
    left_out = [f"left out: {r.strategy}: {r.reason}" for r in advice.rejections]
    return _fragment(
        f"{advice.dataset}: {headline(advice)}",
        *(f"<p>{escape(reason)}</p>" for reason in reasons),
        _table(columns, rows, bold=None if is_void else 0),
        *(f"<p>{escape(line)}</p>" for line in left_out),
        _findings("Issues", [f for f in advice.findings if f.severity == "issue"], is_open=True),
        _findings("Tips", [f for f in advice.findings if f.severity == "tip"], is_open=False),
    )


def outcome_html(outcome: "Outcome") -> str:
    """Return result and best trials as an HTML fragment; all text is escaped."""
    ranked = sorted(outcome.trials, key=lambda t: -t.val_accuracy.mid if t.val_accuracy else 1.0)
    shown = ranked[:MAX_TRIALS]
    columns = ("trial", "strategy", "validation accuracy", "time", "hyperparameters")
    numbers = [t.number for t in shown]
    best = numbers.index(outcome.best.number) if outcome.best.number in numbers else None
    void, n_more = outcome.advice.void, len(ranked) - len(shown)
    return _fragment(
        f"{outcome.advice.dataset}: {result(outcome)}",
        "" if void is None else f"<p>Caution: {escape(void.title)}</p>",
        _table(columns, [_trial_cells(t) for t in shown], bold=best),
        f"<p>and {n_more} more: to_frame()</p>" if n_more else "",
        f"<p>{duration(outcome.seconds)}; search ended: {escape(ENDED[outcome.ended])}</p>",
        f"<p>Folder: {escape(str(outcome.folder))}</p>",
    )


def advice_frame(advice: "Advice") -> "DataFrame":
    """Return one row per strategy and input size, see `Advice.to_frame`."""
    ranked = {(r.strategy, r.input_px): r for r in advice.recommendations}
    rank = {key: number for number, key in enumerate(ranked, start=1)}
    options = () if advice.frontier is None else advice.frontier.options
    by_key = {**ranked, **{(o.strategy, o.input_px): o for o in options}, **ranked}
    rows = [
        {
            "strategy": r.strategy,
            "input_px": r.input_px,
            "rank": rank.get(key),
            "backbone": r.backbone,
            **_ends("accuracy", r.accuracy),
            **_ends("seconds", r.seconds),
            "cases": r.cases,
            "measured": r.measured,
            "peak_bytes": r.peak_bytes,
            **_params(r.hyperparameters),
        }
        for key, r in by_key.items()
    ]
    return _frame(rows, {"rank": "Int64", "peak_bytes": "Int64"})


def outcome_frame(outcome: "Outcome") -> "DataFrame":
    """Return one row per trial, see `Outcome.to_frame`."""
    rows = [
        {
            "number": t.number,
            "strategy": t.strategy,
            **_ends("val_accuracy", t.val_accuracy),
            "seconds": t.seconds,
            "pruned": t.pruned,
            "reason": t.reason,
            "n_train": t.n_train,
            **_params(t.hyperparameters),
        }
        for t in outcome.trials
    ]
    return _frame(rows, {"n_train": "Int64"})


def _frame(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> "DataFrame":
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise TransferError(
            "to_frame() needs pandas: pip install 'tl-advisor[pandas]'."
        ) from error
    frame: DataFrame = pandas.DataFrame(rows)
    return frame.astype(kinds)


def _ends(name: str, interval: "Interval | None") -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.mid, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _params(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters under the names of Optuna's `Study.trials_dataframe`."""
    return {f"params_{name}": value for name, value in hyperparameters.items()}


def _strategy_cells(number: int, r: "Recommendation") -> tuple[str, ...]:
    basis = "measured" if r.measured else "predicted"
    return (
        str(number),
        r.strategy,
        r.accuracy.percent(),
        f"{r.input_px} px",
        duration(r.seconds.mid),
        basis if r.cases else "assumed",
    )


def _trial_cells(trial: "TrialRecord") -> tuple[str, ...]:
    score = trial.reason if trial.val_accuracy is None else trial.val_accuracy.percent()
    given = ", ".join(f"{name} {_short(v)}" for name, v in trial.hyperparameters.items())
    return str(trial.number), trial.strategy, score or "", duration(trial.seconds), given


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _fragment(title: str, *parts: str) -> str:
    return f"<div><p><strong>{escape(title)}</strong></p>{''.join(parts)}</div>"


def _table(columns: Iterable[str], rows: Sequence[Sequence[str]], bold: int | None) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for number, row in enumerate(rows):
        cells = [f"<strong>{escape(c)}</strong>" if number == bold else escape(c) for c in row]
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _findings(title: str, findings: Sequence["Finding"], *, is_open: bool) -> str:
    if not findings:
        return ""
    items = "".join(
        f"<li><strong>{escape(f'{f.code} {f.title}')}</strong><br>{escape(f.detail)}"
        f"<br>{escape(f'Action: {f.action}')}</li>"
        for f in findings
    )
    state = " open" if is_open else ""
    return f"<details{state}><summary>{title}: {len(findings)}</summary><ul>{items}</ul></details>"
