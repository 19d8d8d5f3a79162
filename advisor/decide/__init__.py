"""Decide on a strategy from measurements: pure functions without torch, files or clock access."""
