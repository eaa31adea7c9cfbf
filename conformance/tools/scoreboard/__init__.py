"""Ports side by side, and the dialect that each follows."""
