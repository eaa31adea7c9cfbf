"""quack before the kit."""
