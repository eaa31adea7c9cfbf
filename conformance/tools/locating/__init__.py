"""Where two runs' activations part."""
