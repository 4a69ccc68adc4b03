"""Guarded steps: what one is, how it flows, and the drivers of that flow."""
