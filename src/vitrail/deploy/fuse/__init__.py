"""The inference form of a network."""
