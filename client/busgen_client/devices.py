"""Models of scanners, as they are compared. What is shown and stored of a model is its scrubbed name; two models may share it, since words that no
scanner's name has are dropped ("LOGIQ Fortis" and "LOGIQ Totus" are both "LOGIQ"). So a model is known by a keyed digest of what the header says.
"""

from typing import TYPE_CHECKING

from busgen_core.phantom.scanners import SCANNERS

if TYPE_CHECKING:
    from busgen_client.intake.replacements import Keyed  # imports pydicom

PHANTOM_MAKER = "BUSGen"  # Manufacturer (0008,0070) of simulated scanners, which write no text into a scan


def model_name(device: str) -> str:
    """A scanner's name as it is compared: case and spaces do not matter.

    >>> model_name("Logiq  e9")
    'LOGIQ E9'
    """
    return " ".join(device.upper().split())


def device_key(key: "Keyed", *, manufacturer: str, model: str) -> str:
    """Keyed digest of a model.

    Args:
        key: ``Pseudonyms.key`` of the site.
        manufacturer: Manufacturer (0008,0070) in full.
        model: Manufacturer's Model Name (0008,1090) in full, not scrubbed.

    Returns:
        Hexadecimal digits; empty where no model is named.
    """
    name = model_name(model)
    return key("device", model_name(manufacturer), name) if name else ""


def phantom_keys(key: "Keyed") -> frozenset[str]:
    """The digests of simulated scanners."""
    return frozenset(device_key(key, manufacturer=PHANTOM_MAKER, model=name) for name in SCANNERS)
