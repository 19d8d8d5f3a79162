"""From files on disk to a labelled, split dataset. Knows no network."""
