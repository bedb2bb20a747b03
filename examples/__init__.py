"""Short scripts to begin one's own from: own text, a judge of documents, a preference loss."""
