"""jax.nn, as it ships."""
