"""Frames of other libraries: what they become on the way in, and how they are made of results.

Conversion only: rows are asked, kept and joined in `batch`, whichever library they came from.
"""
