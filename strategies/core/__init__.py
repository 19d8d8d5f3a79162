"""Shared foundations of all strategies: errors, run context, cache, metrics, progress."""
