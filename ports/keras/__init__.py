"""Keras on the JAX backend, as it ships."""
