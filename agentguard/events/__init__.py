"""Events: their types, their stored form, and the chain that binds them."""
