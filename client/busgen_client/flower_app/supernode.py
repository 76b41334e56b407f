"""The SuperNode with a guard: a bundle (FAB) whose SHA-256 is not pinned is refused before it is unpacked or imported.

Flower's own check (``--trusted-entities``) demands a licence record that no local bundle has. This module puts the
hospital's pins in the place of that check, inside the SuperNode's process, right after the bundle's bytes arrive and
before anything reads them. If a Flower release moves that place, the node refuses to start.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.cli.flower_supernode import flower_supernode

from busgen_core.errors import UntrustedBundleError

log = logging.getLogger("busgen.guard")
PLACES = ("_verify_fab", "http_request_response", "_pull_and_store_message", "FAB_VERIFICATION_ERROR")


def is_pinned(content: bytes, pins: Sequence[str]) -> bool:
    """True when the SHA-256 of these bytes is pinned.

    >>> is_pinned(b"", ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"])
    True
    """
    return hashlib.sha256(content).hexdigest() in pins


def install_guard(pins: Sequence[str]) -> None:
    """Put the pins in the place of Flower's bundle check.

    Raises:
        UntrustedBundleError: no pins, or this Flower has no such place.
    """
    missing = [name for name in PLACES if not hasattr(supernode, name)]
    if missing or not pins:
        raise UntrustedBundleError(f"cannot guard the SuperNode: {'this Flower lacks ' + str(missing) if missing else 'no bundle digest is pinned'}")
    connect: Callable[..., Any] = supernode.http_request_response
    start: Callable[..., Any] = supernode.start_client_internal

    @contextmanager
    def guarded_connect(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*args, **kwargs) as connection:
            node_id, receive, send, get_run, get_fab, *rest = connection

            def get_judged_fab(fab_hash: str, run_id: int) -> Fab:
                fab = get_fab(fab_hash, run_id)
                return Fab(fab.hash_str, fab.content, {"valid_license": "judged by pin"})

            yield (node_id, receive, send, get_run, get_judged_fab, *rest)

    def verify(fab: Fab, _trusted: dict[str, str]) -> bool:
        pinned = is_pinned(fab.content, pins)
        if not pinned:
            log.error("bundle.refused code=%s sha256=%s", UntrustedBundleError.code, hashlib.sha256(fab.content).hexdigest())
        return pinned

    def guarded_start(**kwargs: Any) -> None:
        kwargs["trusted_entities"] = {"pinned-digests": ""}  # any non-empty value: it switches Flower's check on
        start(**kwargs)

    supernode.http_request_response = guarded_connect
    supernode._verify_fab = verify
    sys.modules["flwr.supernode.cli.flower_supernode"].start_client_internal = guarded_start  # type: ignore[attr-defined]


def main() -> None:
    """``python -m busgen_client.flower_app.supernode PIN[,PIN…] <options of flower-supernode>``."""
    logging.basicConfig(level=logging.INFO, force=True)
    pins = sys.argv.pop(1).split(",")
    install_guard(pins)
    flower_supernode()


if __name__ == "__main__":
    main()
