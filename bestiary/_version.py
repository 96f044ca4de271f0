"""The version of the package, and nothing else, so that any part may import it."""

__version__ = "0.2.0"
