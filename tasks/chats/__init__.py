"""Messages: conversations and preference pairs, read or made by rules, and their form as tokens."""
