"""Reading a log back: whether it is intact, and what it says."""
