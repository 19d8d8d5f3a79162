"""Frozen dataclasses that the packages of the advisor exchange; their fields are JSON keys."""
