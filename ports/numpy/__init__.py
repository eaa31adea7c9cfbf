"""NumPy, gradients by hand."""
