"""Transforms of samples to inputs and targets, one file a task."""
