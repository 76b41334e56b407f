"""SHA-256 digests of bytes, files and folders, and canonical JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 (FIPS 180-4) of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in constant memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces, NaN refused: the bytes that are hashed and signed.

    >>> canonical_json({"b": 1, "a": [1.5]})
    b'{"a":[1.5],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def files_digest(digests: Mapping[str, str]) -> str:
    """One digest for a set of files, from the SHA-256 of each.

    >>> files_digest({"a": "00", "b": "11"}) == files_digest({"b": "11", "a": "00"})
    True
    """
    return sha256_bytes(canonical_json(dict(digests)))
