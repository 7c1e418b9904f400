"""phiquant: compress the weights of any PyTorch model in place, and run it compressed."""

__version__ = "0.1.0"
