"""TransformerEngine before the kit."""
