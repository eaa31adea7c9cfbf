"""Mistakes made from a port's own numbers: what no catalogue can list, because a number is to be found."""
