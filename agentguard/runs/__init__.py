"""Runs: their states, what their log adds up to, and which one is current."""
