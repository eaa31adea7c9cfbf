"""Ports of implementations that nobody here wrote, as they ship."""
