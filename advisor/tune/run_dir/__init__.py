"""Run directory: settings, trials, checkpoints and the best classifier of a run on disk."""
