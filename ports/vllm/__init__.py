"""vLLM before the kit."""
