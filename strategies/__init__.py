"""Transfer-learning strategies and the code they need. Nothing here imports the advisor."""
