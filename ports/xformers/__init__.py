"""xFormers before the kit."""
