"""Prompts in, tokens out."""
