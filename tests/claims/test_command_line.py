"""The commands end in words and an exit status, never in a traceback."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w

from busgen_client.cli import main as node
from busgen_core.release import ATTESTATION, MANIFEST
from busgen_privacy.dp.accounting import GaussianEvent
from busgen_privacy.ledger import Ledger
from busgen_server.cli import main as hub
from tests.releases import TRUSTED, good_release


def ends_with(main, *arguments: object) -> str | int | None:
    """Run a command in this process; what sys.exit was given (text means status 1)."""
    sys.argv = ["busgen", *(str(a) for a in arguments)]
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def config(tmp_path: Path) -> Path:
    content = {
        "site": "north",
        "data": "data",
        "hub": {"address": "127.0.0.1:1", "ca_file": "ca.crt", "bundle_sha256": ["0" * 64]},
        "policy": {"lifetime_epsilon": 16.0, "campaign_epsilon": 8.0, "public_cohort": 40},
    }
    file = tmp_path / "node.toml"
    file.write_text(tomli_w.dumps(content))
    return file


def test_settings_that_are_missing_or_wrong_are_named(config: Path) -> None:
    """A missing file, broken TOML and a value out of range each say what and where."""
    assert str(ends_with(node, "jobs", "list", "--config", config.with_name("none.toml"))).startswith("busgen-node: config-invalid:")
    config.write_text(config.read_text().replace("public_cohort = 40", "public_cohort = 2"))
    said = str(ends_with(node, "jobs", "list", "--config", config))
    assert said.startswith("busgen-node: config-invalid:")
    assert "policy.public_cohort" in said
    config.write_text("site = ")
    assert str(ends_with(node, "start", "--config", config)).startswith("busgen-node: config-invalid:")


def test_wrong_usage_is_status_two(config: Path) -> None:
    """An unknown command is wrong usage, not a refusal."""
    assert ends_with(node, "fly") == 2
    assert ends_with(hub, "campaign", "create") == 2


def test_an_edited_ledger_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``ledger verify`` ends with 0 on a whole ledger and with a stable code on an edited one."""
    file = config.parent / "data" / "ledger.jsonl"
    file.parent.mkdir()
    ledger = Ledger(file, site="north")
    ledger.reserve(account="members", reference="c1", events=[("score", GaussianEvent(4.0, 1.0, 1))], cap_epsilon=8, delta=1e-5)
    assert ends_with(node, "ledger", "verify", "--config", config) == 0
    assert "whole: 1 entries" in capsys.readouterr().out
    file.write_text(file.read_text().replace("4.0", "9.0"))
    said = str(ends_with(node, "ledger", "verify", "--config", config))
    assert said.startswith("busgen-node: ledger-invalid:")
    assert "line 1 was edited" in said


def test_a_short_passphrase_is_refused(config: Path) -> None:
    """The officer's key is not created under a passphrase of few characters."""
    invite, passphrase = config.with_name("invite.json"), config.with_name("passphrase")
    invite.write_text(json.dumps({"address": "127.0.0.1:1", "ca_pem": "x", "bundle_sha256": ["0" * 64]}))
    passphrase.write_text("short\n")
    arguments = ("join", invite, "--site", "north", "--passphrase-file", passphrase, "--public-cohort", 40, "--config", config)
    assert str(ends_with(node, *arguments)).startswith("busgen-node: config-invalid:")
    assert not (config.parent / "data" / "keys" / "officer.pem").exists()


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    """``busgen-hub verify`` ends with 0 for a good release and with the named error of a flipped byte, a lost signature, a wrong folder."""
    keys = tmp_path / "join.json"
    keys.write_text(json.dumps({"site": TRUSTED.site, "node_key": TRUSTED.node.hex, "officer_key": TRUSTED.officer.hex, "flower_key": ""}))
    folder = tmp_path / "release"
    for name, data in good_release().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert ends_with(hub, "verify", folder, "--keys", keys) == 0
    card = (folder / "README.md").read_bytes()
    (folder / "README.md").write_bytes(bytes([card[0] ^ 1]) + card[1:])
    assert str(ends_with(hub, "verify", folder, "--keys", keys)).startswith("busgen-hub: release-content: README.md")
    (folder / ATTESTATION).unlink()
    assert str(ends_with(hub, "verify", folder, "--keys", keys)).startswith("busgen-hub: release-signature:")
    assert str(ends_with(hub, "verify", tmp_path / MANIFEST, "--keys", keys)).startswith("busgen-hub: wrong-state:")


def test_what_the_system_refuses_is_said_without_a_traceback(config: Path) -> None:
    """A data folder that cannot be made ends in a code and advice."""
    (config.parent / "data").write_text("a file in the way")
    assert str(ends_with(node, "jobs", "list", "--config", config)).startswith("busgen-node: unavailable:")
