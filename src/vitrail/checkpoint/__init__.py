"""Weights files and run directories: written whole, read without running anything they hold."""
