"""Files, drawing, progress and the machine: nothing that knows a network."""
