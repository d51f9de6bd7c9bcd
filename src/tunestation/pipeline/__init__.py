"""Stages, keys, records, skipping, running, the lock. Knows nothing of language models."""
