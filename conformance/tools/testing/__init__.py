"""The kit under pytest, in a user's own tests."""
