"""Findings: coded remarks about the data, the domain and the transfer, each with an action."""
