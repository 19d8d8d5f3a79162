"""Several processes or machines on one run."""
