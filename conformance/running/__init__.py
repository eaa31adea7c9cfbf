"""A port is asked every case, live or by files."""
