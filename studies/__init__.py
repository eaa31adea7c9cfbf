"""What the project's source notes claim about norms, measured: `python -m studies`."""
