"""Sessions: how a run is opened and left, live, attached, recovered, forked, nested or replayed."""
