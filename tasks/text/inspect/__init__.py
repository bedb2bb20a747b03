"""What the judges of documents dropped and why, for people."""
