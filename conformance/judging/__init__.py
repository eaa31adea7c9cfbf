"""Outputs to verdicts, and verdicts to the mistakes that explain them."""
