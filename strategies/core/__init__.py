"""What every strategy stands on: errors, context, cache, metrics."""
