"""How far the hub is with looking at a release again; the command line and the dashboard say the same."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from busgen_privacy.reaudit_findings import Reaudit
from busgen_server.database import ReleaseRow
from busgen_server.reaudits import latest
from busgen_server.store import HubStore

LookState = Literal["waiting", "looking", "failed", "remarks", "clear"]


class Look(BaseModel):
    """Where the hub is with a release.

    Attributes:
        state: ``waiting``: not begun; ``looking``: begun, nothing found yet; ``failed``: nothing found; otherwise there are findings.
        remarks: Things to look at.
        left_out: Parts that were not looked at.
        code: Of the last attempt, if it failed; findings of an earlier one may be there all the same.
        attempts: Made since the last success.
        updated: When the last attempt began or ended.
    """

    model_config = ConfigDict(frozen=True)

    state: LookState
    remarks: int = 0
    left_out: int = 0
    code: str = ""
    attempts: int = 0
    updated: datetime | None = None


def look_and_findings(store: HubStore, release: ReleaseRow) -> tuple[Look | None, Reaudit | None]:
    """Where the hub is with a release, and what it found.

    No look: the hub does not look at this one, it was rejected, or retired before its turn. Findings that another version of this software
    kept are as good as none: the hub will look again.
    """
    row = store.reaudit(release.release_id)
    if row is None:
        return (Look(state="waiting") if release.state == "admitted" else None), None
    found = latest(store, release.release_id)
    if found is not None:
        state: LookState = "remarks" if found.remarks else "clear"
        counts = {"remarks": len(found.remarks), "left_out": len(found.not_run)}
        return Look(state=state, **counts, code=row.code, attempts=row.attempts, updated=row.updated), found
    state = "failed" if row.code else "looking" if row.attempts else "waiting"
    return Look(state=state, code=row.code, attempts=row.attempts, updated=row.updated), None


def look_words(look: Look | None) -> str:
    """A mark for people, such as in a list of releases.

    >>> look_words(Look(state="remarks", remarks=1)), look_words(Look(state="waiting"))
    ('1 remark', 'not looked at yet')
    """
    if look is None:
        return ""
    words = {"waiting": "not looked at yet", "looking": "being looked at", "failed": "failed", "clear": "no remarks"}
    return words.get(look.state) or f"{look.remarks} remark{'s' if look.remarks != 1 else ''}"
