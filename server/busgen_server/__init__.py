"""The hub: never sees a patient's pixel."""

__version__ = "0.1.0"
