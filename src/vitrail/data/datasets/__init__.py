"""Data sets, one file a layout."""
