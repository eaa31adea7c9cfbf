"""flax.nnx, as it ships, and with the settings that conform."""
