"""The figures of each task, as their data sets' own tools define them."""
