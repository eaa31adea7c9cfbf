"""What the kit costs, and what its layers cost against their peers: ratios within one run, printed and kept as JSON."""
