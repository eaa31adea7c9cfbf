"""Ports of norms that were not written here, as they ship: one folder each, run as `ports.mlx`, say."""
