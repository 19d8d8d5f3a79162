"""Progress of a call while it runs: on a terminal, in a notebook, or as lines of text."""
