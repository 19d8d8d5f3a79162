"""From advice to trials, a classifier and its outcome, within a time budget."""
