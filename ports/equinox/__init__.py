"""equinox.nn, as it ships."""
