"""Where is RMSNorm's output wrong, zero or NaN, by eps, dtype and input scale, and what do float32 statistics mend?"""
