"""Options as plain values: data classes whose fields are the options, their types and their ranges."""
