"""Limits and usage: the values, and the accounts that hold them."""
