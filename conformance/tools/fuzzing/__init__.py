"""Random cases; a failure is made small and kept."""
