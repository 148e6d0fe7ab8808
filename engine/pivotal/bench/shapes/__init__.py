"""Drawn scenes with exact masks, and the oracle that reads pictures back."""
