"""What people may do in the console."""

from enum import StrEnum


class Role(StrEnum):
    """What a person may do. Both see everything; neither may do all."""

    STEWARD = "steward"  # decides on the quarantine
    OFFICER = "officer"  # answers for releases
