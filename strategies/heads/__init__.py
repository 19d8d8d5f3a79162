"""Linear heads on frozen features: fitting, regularisation and cross-validation."""
