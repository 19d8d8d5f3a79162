"""Faster replacements for torch operations, and compiled training steps and feature passes."""
