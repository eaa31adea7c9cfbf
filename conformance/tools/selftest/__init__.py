"""The judge judged: every mistake is rejected, and no honest arithmetic is."""
