"""Reads the results table and nothing else: fronts, tables, plots, the report. No torch, no Ray."""
