"""tinygrad before the kit."""
