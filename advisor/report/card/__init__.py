"""Model card of a classifier, for people and for the Hugging Face hub."""
