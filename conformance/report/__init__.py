"""Verdicts to something a person or a program reads.

Data first (`building` makes a `report` of them, `machine` writes and reads it), rendering last (`console`, `junit`, `markdown`,
`html`).
"""
