"""tokamax before the kit."""
