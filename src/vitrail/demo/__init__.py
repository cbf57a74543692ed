"""A static page that runs a trained network in a browser."""
