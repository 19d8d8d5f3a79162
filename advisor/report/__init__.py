"""Advice and outcome for people and for programs."""
