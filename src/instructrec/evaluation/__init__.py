"""Measuring a model on held-out rows, and the report."""
