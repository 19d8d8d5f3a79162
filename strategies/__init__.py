"""How to learn: the strategies, and what they stand on. Nothing here has heard of the advisor."""
