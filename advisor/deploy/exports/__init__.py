"""What an export is checked with, and how it reaches the Hugging Face hub."""
