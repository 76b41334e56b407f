"""DICOM PS3.15 2026c, table E.1-1, Basic Profile column, as the package dicom-anonymizer carries it. Its data alone is used."""

from functools import lru_cache

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table

LISTS = ("D", "Z", "X", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR")


@lru_cache(maxsize=1)
def _actions() -> tuple[dict[int, str], tuple[tuple[int, int, str], ...]]:
    """Actions by tag, and (tag, mask, action) of repeating groups."""
    single: dict[int, str] = {}
    repeating: list[tuple[int, int, str]] = []
    for name in LISTS:
        for group, element, *masks in getattr(table, f"{name}_TAGS"):
            action = name.replace("_STAR", "*").replace("_", "/")
            if masks:
                repeating.append(((group << 16) | element, (masks[0] << 16) | masks[1], action))
            else:
                single[(group << 16) | element] = action
    return single, tuple(repeating)


def basic_action(tag: int) -> str:
    """What the Basic Profile does with an attribute, in the standard's letters; empty for one that the table does not name.

    >>> basic_action(0x0010_0010), basic_action(0x0008_0018), basic_action(0x6002_3000), basic_action(0x0028_0010)
    ('Z', 'U', 'X', '')
    """
    if (tag >> 16) % 2:
        return "X"  # private attributes, first row of the table
    single, repeating = _actions()
    return single.get(tag) or next((action for wanted, mask, action in repeating if tag & mask == wanted & mask), "")


def named_tags() -> frozenset[int]:
    """Every single tag that the table names."""
    return frozenset(_actions()[0])
