"""Token ids: the contract that travels with them, the tokenizer, and the files that training reads."""
