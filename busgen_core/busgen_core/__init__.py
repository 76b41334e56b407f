"""Generator, release format, signatures and downstream models; imports none of the other distributions."""

__version__ = "0.1.0"
