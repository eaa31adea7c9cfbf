"""Dtypes and their rounding, intervals, draws, and tensors in files: what everything else is made of."""
