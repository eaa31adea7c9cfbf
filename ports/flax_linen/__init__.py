"""flax.linen, as it ships, and with a variance in two passes."""
