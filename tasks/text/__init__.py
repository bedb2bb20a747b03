"""Documents: where they come from, how they are read, and which of them are worth learning."""
