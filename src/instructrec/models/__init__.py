"""Backbones and tuning methods."""
