"""Coded remarks about data, domain and transfer, each with an action."""
