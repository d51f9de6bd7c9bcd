"""Tunestation: repeatable fine-tuning of chat models from one recipe file."""

__version__ = "0.1.0"
