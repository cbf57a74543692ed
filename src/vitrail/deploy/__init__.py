"""Networks as files that run without this library: written, described, measured against PyTorch, quantised."""
