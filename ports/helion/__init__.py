"""Helion's examples before the kit."""
