"""The nouns of the advisor: frozen dataclasses that every room above may pass on."""
