"""Lists of the console, asked for what is far beyond their end."""

import asyncio

import httpx
import pytest

from busgen_client.cohort import CohortStore
from busgen_client.console.accounts import Account
from busgen_client.console.app import create_app
from busgen_client.console.desk import Person, signed_in
from busgen_client.console.roles import Role
from busgen_client.console.sessions import SignedIn
from busgen_client.settings import NodeSettings


@pytest.mark.parametrize("path", ["/quarantine", "/journal"])
@pytest.mark.parametrize(("skip", "status"), [(0, 200), (10**9, 200), (2**63, 422), (10**23, 422), (-1, 422)])
def test_no_number_of_lines_to_leave_out_is_an_error_of_ours(node: NodeSettings, opened: CohortStore, path: str, skip: int, status: int) -> None:
    """Whatever number stands in the address, the list is empty or the request is refused."""
    assert asyncio.run(asked(node, opened, f"{path}?skip={skip}")) == status


async def asked(node: NodeSettings, store: CohortStore, path: str) -> int:
    console = create_app(node, store)
    session = SignedIn(name="ada", token="", began=0.0, seen=0.0)
    console.dependency_overrides[signed_in] = lambda: Person(account=Account(name="ada", role=Role.STEWARD), session=session)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=console, raise_app_exceptions=False), base_url="http://localhost") as browser:
        return (await browser.get(path)).status_code
