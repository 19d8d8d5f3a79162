"""From measurements to a decision: pure functions, without torch, files or a clock."""
