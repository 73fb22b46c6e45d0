"""Measurements, each against a baseline in the same run; `results/` has what they said, with date and hardware."""
