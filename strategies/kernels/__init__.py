"""Faster replacements for torch operations in training, with the same results."""
