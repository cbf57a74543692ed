"""From a sample to a network's input and target, one file a task."""
