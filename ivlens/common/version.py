"""The version of ivlens, in a file of its own so that every module can read it without importing `ivlens` itself."""

__version__ = "0.1.0"
