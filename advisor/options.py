"""What both commands take: as data, so that asking costs no import of a network library."""

from dataclasses import dataclass, field
from pathlib import Path

from strategies.core.progress import OnProgress
from strategies.core.sampling import MAX_IMAGES, MAX_QUARANTINE

AUTO = "auto"


@dataclass(frozen=True)
class Options:
    """What both commands take; the defaults choose by themselves.

    Attributes
    ----------
    backbone, input_px, device, strategy
        "auto" or None: chosen here, printed with the reason.
    val, test
        Folders of class folders given apart from the data.
    cache_dir
        Where features are kept; None: the user's cache folder.
    root, group_by, max_images, max_quarantine
        How the data are read, see `load_task`.
    reference
        A folder of pictures like those that the backbone was pretrained with; None: what this
        program ships.
    """

    backbone: str = AUTO
    input_px: int | None = None
    strategy: str = AUTO
    val: Path | None = None
    test: Path | None = None
    seed: int = 0
    device: str = AUTO
    cache_dir: Path | None = None
    on_progress: OnProgress | None = field(default=None, compare=False)
    root: Path | None = None
    group_by: str | None = None
    max_images: int | None = MAX_IMAGES
    max_quarantine: float = MAX_QUARANTINE
    reference: Path | None = None


DEFAULTS = Options()
