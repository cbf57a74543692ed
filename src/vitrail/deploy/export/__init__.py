"""Exported files: written, compared with PyTorch, read again."""
