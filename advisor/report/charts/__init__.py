"""Charts of the reports (Vega-Lite, and text for the terminal), with their numbers as tables."""
