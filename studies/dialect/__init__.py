"""MiniMind's RMSNorm cast, then scaled; now it scales, then casts: how many outputs change, and what does it cost a model?"""
