"""Run all rules of the findings: those about the data, then those about the transfer."""

from advisor.decide.candidates import DecisionInputs
from advisor.decide.chance import lacks_signal
from advisor.decide.negative_transfer import transfer_risks
from advisor.decide.priors import load_priors
from advisor.findings.data import check_data
from advisor.findings.transfer import TransferContext, check_transfer
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from advisor.types.profile import AlternativeBackbone
from strategies.data.dataset import Dataset


def check(
    dataset: Dataset,
    inputs: DecisionInputs,
    evidence: ProbeEvidence,
    alternative: AlternativeBackbone | None = None,
) -> tuple[Finding, ...]:
    """Return all findings about a dataset and its profile, in the order of their codes."""
    priors = load_priors()
    context = TransferContext(
        priors.evidence["control"],
        transfer_risks(inputs, priors),
        alternative,
        lacks_signal(inputs.profile),
    )
    return check_data(dataset, evidence) + check_transfer(inputs.profile, context)
