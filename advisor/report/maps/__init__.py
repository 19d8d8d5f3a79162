"""Activation maps in reports: drawn over the user's images, and for the mistakes of a page."""
