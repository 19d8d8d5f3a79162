"""check(): coded findings about the data, the domain and the transfer, each with an action."""

from advisor.data_checks import check_data
from advisor.evidence import Measured
from advisor.priors import load_priors
from advisor.risk import transfer_risks
from advisor.transfer_checks import Known, check_transfer
from advisor.types import Finding, Profile
from strategies.core.task import ImageTask


def check(task: ImageTask, profile: Profile, measured: Measured) -> tuple[Finding, ...]:
    """Return what a careful colleague would remark, in the order of the codes."""
    priors = load_priors()
    known = Known(priors.evidence["control"], transfer_risks(profile, priors))
    return check_data(task, measured) + check_transfer(profile, known)
