"""Counting and comparing: the rules of the papers, and their tables beside our counts."""
