"""The only door to flwr on the node: the ClientApp and the guarded SuperNode."""

from busgen_client.flower_app.answer import app

__all__ = ["app"]
