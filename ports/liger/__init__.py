"""Liger Kernel before the kit."""
