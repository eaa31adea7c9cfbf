"""MLX before the kit."""
