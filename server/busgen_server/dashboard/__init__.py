"""The hub's dashboard: one page, its JSON, sample images and audit reports. It reads the store and changes nothing."""

from busgen_server.dashboard.app import create_app

__all__ = ["create_app"]
