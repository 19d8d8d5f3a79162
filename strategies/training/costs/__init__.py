"""What training costs: its speed, measured for a few steps, and its memory, predicted."""
