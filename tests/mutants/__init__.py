"""Deliberate faults by area; see tests/mutations.py."""
