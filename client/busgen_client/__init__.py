"""The hospital node: the only code that sees a patient."""

__version__ = "0.1.0"
