"""The kill switch: what a kill is, and the channels that carry it."""
