"""What uses several rooms at once."""
