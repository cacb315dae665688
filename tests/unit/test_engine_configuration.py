"""Docker's configuration file is changed with care."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pannier.core.errors import Conflict, InvalidInput
from pannier.engine.configuration import register_runtime, unregister_runtime

PROGRAM = "/usr/local/bin/pannier-runtime"


def test_a_machine_without_the_file_gets_one(tmp_path: Path) -> None:
    file = tmp_path / "docker" / "daemon.json"
    assert register_runtime(PROGRAM, file=file)
    assert json.loads(file.read_text()) == {
        "runtimes": {"pannier": {"path": PROGRAM}},
        "default-runtime": "pannier",
    }
    assert not register_runtime(PROGRAM, file=file), "the second time changes nothing"


def test_what_else_the_file_says_stays_and_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    before = {"storage-driver": "overlay2", "runtimes": {"nvidia": {"path": "/usr/bin/nvidia"}}}
    file.write_text(json.dumps(before))
    file.chmod(0o600)
    assert register_runtime(PROGRAM, file=file)
    after = json.loads(file.read_text())
    assert after["storage-driver"] == "overlay2"
    assert after["runtimes"]["nvidia"] == {"path": "/usr/bin/nvidia"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert unregister_runtime(file=file)
    assert json.loads(file.read_text()) == before
    assert not unregister_runtime(file=file)


@pytest.mark.parametrize("text", ["{", "[]", '"runc"'])
def test_a_file_that_cannot_be_understood_stays_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=r"daemon\.json"):
        register_runtime(PROGRAM, file=file)
    assert file.read_text() == text


def test_a_runtime_that_a_person_chose_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text('{"default-runtime": "nvidia"}')
    with pytest.raises(Conflict, match="nvidia"):
        register_runtime(PROGRAM, file=file)
    assert json.loads(file.read_text()) == {"default-runtime": "nvidia"}
