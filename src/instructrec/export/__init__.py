"""Handing a tuned model to other programs."""
