"""The commands end in words and an exit status, never in a traceback."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w

from busgen_client.cli import main as node
from busgen_core.release import ATTESTATION, MANIFEST
from busgen_privacy.dp.accounting import GaussianEvent
from busgen_privacy.dp.planner import Pace
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


def test_a_plan_is_told_before_anything_is_spent(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``plan`` prints mechanisms, epsilon by both accountants, time and reasons, as words or JSON, and leaves no ledger behind."""
    monkeypatch.setattr("busgen_client.planning.measured", lambda *_, **__: Pace(image=0.05, look=0.03, gradient=0.05))
    assert ends_with(node, "plan", "--epsilon", 8, "--images", 500, "--json", "--config", config) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert found["choice"] == "vote+mean"
    assert max(found["pld"], found["prv"]) <= found["epsilon"] <= 8
    assert found["seconds"] > 60
    assert found["expected"]["patients"] <= 40
    assert ends_with(node, "plan", "--epsilon", 0.1, "--config", config) in (0, None)
    said = capsys.readouterr().out
    assert "plan: foundation" in said
    assert "40 patients are too few" in said
    assert not (config.parent / "data" / "ledger.jsonl").exists()


def test_a_plan_that_takes_too_long_or_promises_nothing_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More minutes than the settings allow, or a delta of 1 / patients, end with a code and what to do."""
    monkeypatch.setattr("busgen_client.planning.measured", lambda *_, **__: Pace(image=0.05, look=0.03, gradient=0.05))
    said = str(ends_with(node, "plan", "--delta", 0.025, "--config", config))
    assert said.startswith("busgen-node: config-invalid:")
    assert "delta" in said
    config.write_text(config.read_text() + "\n[adapt]\nminutes = 0.5\n")
    said = str(ends_with(node, "plan", "--images", 5000, "--config", config))
    assert "ask for fewer images" in said
