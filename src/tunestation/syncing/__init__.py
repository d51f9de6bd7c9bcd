"""Brings what is complete from one run folder to another while work goes on: `invoke sync`."""
