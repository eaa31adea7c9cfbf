"""RMSNorm and LayerNorm: their exact numbers, their intervals, and the norm laid open for alteration."""
