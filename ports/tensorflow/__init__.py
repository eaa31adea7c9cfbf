"""TensorFlow before the kit."""
