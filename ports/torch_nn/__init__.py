"""torch.nn before the kit."""
