"""The only door to flwr on the hub: the ServerApp that conducts campaigns, and the launcher of its runs."""

from busgen_server.flower_app.conductor import app

__all__ = ["app"]
