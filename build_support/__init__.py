"""How phiquant is built; nothing here is installed."""
