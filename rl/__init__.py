"""Training and evaluation with a saved head set. May import `probing`, never `kfh`."""
