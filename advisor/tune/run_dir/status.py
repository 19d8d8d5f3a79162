"""Status of a run from its directory alone, without data, backbone or database."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from advisor.tune.run_dir.directory import RunDir, read_trial


def status_record(folder: RunDir) -> dict[str, Any]:
    """Return the state of a run as plain JSON values.

    ``state`` is done, searching (or another phase), or stopped: a run without an outcome whose
    lock no process holds. Such a run can be resumed.
    """
    state, settings = folder.state(), folder.settings()
    phase = state.get("phase", "measuring")
    is_running = folder.is_locked()
    best = folder.best()
    events = folder.events()
    ended = {e["number"] for e in events if e["event"] == "trial ended"}
    begun = {e["number"]: e for e in events if e["event"] in ("trial begun", "trial round")}
    return {
        "state": phase if is_running or phase == "done" else "stopped",
        "data": settings["data"],
        "process": state.get("process") if is_running else None,
        "used_s": round(folder.used_s(), 1),
        "left_s": round(max(0.0, state["ends_at"] - time.time()), 1) if is_running else None,
        "best": None if best is None else asdict(best[0]),
        "averaged": list(folder.averaged_trials()),
        "trials": _trials(folder.path / "trials.jsonl"),
        "under_way": [e for n, e in begun.items() if n not in ended] if phase != "done" else [],
    }


def _trials(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def status_lines(folder: RunDir, record: dict[str, Any]) -> list[str]:
    """Return the state of a run as lines of text."""
    left = "" if record["left_s"] is None else f", {record['left_s']:.0f} s left"
    lines = [f"{folder.path}: {record['state']} ({record['used_s']:.0f} s used{left})"]
    for entry in record["trials"]:
        trial = read_trial(entry)
        score = trial.val_accuracy.percent() if trial.val_accuracy else trial.reason
        seconds = f"{trial.seconds:.0f} s"
        lines.append(f"  trial {trial.number:<3} {trial.strategy:<18} {seconds:>6}  {score}")
    for event in record["under_way"]:
        step = f"round {event['step']}" if event["step"] else "started"
        word = "running" if record["process"] else "interrupted"
        lines.append(f"  trial {event['number']:<3} {event['strategy']:<18} {word}, {step}")
    if record["best"] is not None:
        best = read_trial(record["best"])
        assert best.val_accuracy is not None
        numbers = ", ".join(str(n) for n in record["averaged"])
        averaged = f", weights of trials {numbers} averaged" if numbers else ""
        lines.append(
            f"Best: {best.strategy} {best.val_accuracy.percent()} on validation{averaged}"
        )
    if record["state"] == "stopped":
        lines.append(f"Continue it with: tl-auto resume {folder.path}")
    if (folder.path / "study.db").exists():
        lines.append(
            f"Browse the trials with: optuna-dashboard sqlite:///{folder.path / 'study.db'}"
        )
    return lines
