"""Text to token ids and back, and how messages become tokens."""
