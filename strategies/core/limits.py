"""Default limits of what is read of a dataset.

This module imports nothing, so that the commands can show the limits in ``--help`` at once.
"""

MAX_IMAGES = 5_000
"""Default maximum number of images read per split."""
MAX_QUARANTINE = 0.10
"""Default maximum share of unreadable images."""
