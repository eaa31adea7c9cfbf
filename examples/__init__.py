"""Ports to try the kit on, right and wrong."""
