"""What is made of several steps: rope, attention, swiglu, gelu, and the Pre-LN block, as programs of named stages."""
