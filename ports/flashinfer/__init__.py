"""FlashInfer before the kit."""
