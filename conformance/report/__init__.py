"""Verdicts to something a person or a program reads: data first (`report`), rendering last (`console`, `machine`)."""
