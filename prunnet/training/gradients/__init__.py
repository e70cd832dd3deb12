"""Gradients of several passes: their rows, averages over workers, conflicts."""
