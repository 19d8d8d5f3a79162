"""Linear heads on frozen features: fitted, regularised and cross-validated."""
