"""Families that transformers does not carry, converted once, on disk, into an architecture that it does."""
