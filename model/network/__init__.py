"""The network: its shape, layers, attention and head, and the formats of others it can be written in."""
