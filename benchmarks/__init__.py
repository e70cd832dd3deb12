"""Measurements, never tests: each prints one JSON object as its last line; ratios are taken in one run."""
