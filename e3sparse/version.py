"""The version of e3sparse, for files that say which one wrote them."""

__version__ = "0.1.0"
