"""The one renderer, and what prompts are made of."""
