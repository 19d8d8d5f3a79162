"""check(): coded findings about the data, the domain and the transfer, each with an action."""

from advisor.decide.negative_transfer import transfer_risks
from advisor.decide.priors import load_priors
from advisor.findings.data import check_data
from advisor.findings.transfer import TransferContext, check_transfer
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from advisor.types.profile import Profile
from strategies.data.dataset import Dataset


def check(dataset: Dataset, profile: Profile, measured: ProbeEvidence) -> tuple[Finding, ...]:
    """Return what a careful colleague would remark, in the order of the codes."""
    priors = load_priors()
    known = TransferContext(priors.evidence["control"], transfer_risks(profile, priors))
    return check_data(dataset, measured) + check_transfer(profile, known)
