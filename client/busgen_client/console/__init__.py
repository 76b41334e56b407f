"""The node's console: what people at the hospital look at and decide, on this machine alone. FastAPI is used only here."""
