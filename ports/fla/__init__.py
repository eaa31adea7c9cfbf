"""flash-linear-attention before the kit."""
