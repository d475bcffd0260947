"""Metrics and statistics: plain functions over text and numbers."""
