"""How do activations and gradients fare in 8 to 50 layers, by norm, initialisation, and with or without residuals?"""
