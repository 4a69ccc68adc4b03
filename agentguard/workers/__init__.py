"""Submitted runs and the workers that carry them out, on Procrastinate in the database of the store."""
