"""Extra trials that a run starts where a finding reports a risk of negative transfer."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution

from advisor.types.advice import Advice, Finding
from strategies.base import Strategy
from strategies.models.backbone import Backbone, load_backbone
from strategies.registry import STRATEGIES

REESTIMATE_BN = {"batch_norm": "reestimated"}
NO_INTERPOLATION = {"blend": 1.0}
"""Fine-tuned weights are used as they are, not interpolated with the pretrained ones."""
STRONG_L2_SP = {"l2_sp": 10.0}
"""A strong L2 penalty on the distance to the pretrained weights."""
REINIT_LAST_STAGES = {"reset_stages": 2, "blend": 1.0}
INTERVENTIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "TL202": (REINIT_LAST_STAGES,),
    "TL203": (REINIT_LAST_STAGES,),
    "TL205": (REESTIMATE_BN,),
    "TL208": (NO_INTERPOLATION, REINIT_LAST_STAGES, STRONG_L2_SP),
}
"""Changes to the advised hyperparameters by finding. Each is given one trial of every strategy
that trains the pretrained network and has these hyperparameters."""
BACKBONE = "backbone"
"""Key of the backbone's name among a trial's settings, if an intervention replaces it."""
NEGATIVE_TRANSFER = ("TL201", "TL202", "TL208", "TL209")
"""Findings after which, as issues, controls such as training from scratch are candidates."""


def interventions_for(findings: Sequence[Finding]) -> dict[str, list[dict[str, Any]]]:
    """Return the changes that findings call for, by strategy and without duplicates."""
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        for change in INTERVENTIONS.get(finding.code, ()):
            for name, strategy in STRATEGIES.items():
                known = found.setdefault(name, [])
                if accepts(strategy, change) and dict(change) not in known:
                    known.append(dict(change))
    return {name: changes for name, changes in found.items() if changes}


def accepts(strategy: type[Strategy], change: Mapping[str, Any]) -> bool:
    """Return whether a change of hyperparameters makes a difference to a strategy.

    It must train the pretrained network, have these hyperparameters, and not have them already.
    """
    if not strategy.trains_network or strategy.role != "transfer":
        return False
    own = strategy().hyperparameters()
    return change.keys() <= own.keys() and any(own[k] != v for k, v in change.items())


def alternative_backbone(advice: Advice) -> dict[str, str] | None:
    """Return the change to an alternative backbone that TL209 found clearly better, or None."""
    alternative = advice.alternative
    named = any(finding.code == "TL209" for finding in advice.findings)
    return {BACKBONE: alternative.name} if named and alternative is not None else None


def backbone_of(settings: Mapping[str, Any], own: Backbone) -> Backbone:
    """Return the backbone of a trial: the run's own unless an intervention replaced it."""
    name = settings.get(BACKBONE, own.name)
    return own if name == own.name else load_backbone(name, input_px=own.input_px)


def hyperparameters_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the strategy's hyperparameters: a trial's settings without the backbone."""
    return {k: v for k, v in settings.items() if k != BACKBONE}


def controls_are_candidates(findings: Sequence[Finding]) -> bool:
    """Return whether an issue reports negative transfer, so that a control may win."""
    return any(f.code in NEGATIVE_TRANSFER and f.severity == "issue" for f in findings)


def initial_trials(
    advised: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    interventions: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return the hyperparameters of a strategy's first trials: the advice, then one change each.

    The changes are the interventions, then a learning rate three times as high and one three
    times as low, then the other BatchNorm policy. These matter most when a pretrained network is
    trained. Learning rates are clipped to the search space.
    """
    entries = [dict(advised), *({**advised, **change} for change in interventions)]
    lr = space.get("lr")
    if isinstance(lr, FloatDistribution) and "lr" in advised:
        changed = [min(max(advised["lr"] * f, lr.low), lr.high) for f in (3.0, 1 / 3)]
        entries += [{**advised, "lr": value} for value in changed if value != advised["lr"]]
    if "batch_norm" in advised and "batch_norm" in space:
        other = "trained" if advised["batch_norm"] == "frozen" else "frozen"
        entries.append({**advised, "batch_norm": other})
    return [e for i, e in enumerate(entries) if e not in entries[:i]]
