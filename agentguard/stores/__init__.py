"""The event stores, one module each; none is imported here, so that a missing extra breaks none."""
