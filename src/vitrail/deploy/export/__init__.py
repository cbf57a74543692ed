"""Exported files: writing, comparison with PyTorch, loading."""
