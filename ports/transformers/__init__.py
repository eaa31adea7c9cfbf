"""Hugging Face transformers before the kit."""
