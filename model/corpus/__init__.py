"""Mathematics of text: words, hashes, near-duplicates, shared n-grams, personal data, language."""
