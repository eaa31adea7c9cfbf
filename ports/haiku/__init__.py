"""dm-haiku, as it ships."""
