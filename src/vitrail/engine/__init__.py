"""Train, evaluate, predict: the loops over images."""
