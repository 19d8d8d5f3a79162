"""Image datasets: listing, decoding, duplicates, splits. Independent of the networks."""
