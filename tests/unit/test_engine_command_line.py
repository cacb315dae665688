"""dockerd's command line, as systemd puts it together and as dockerd reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pannier.engine.command_line import (
    DAEMON_JSON,
    expand,
    read_assignments,
    read_variables,
    read_words,
)


@pytest.mark.parametrize(
    ("words", "default"),
    [
        ("dockerd", None),
        ("dockerd --default-runtime gpu", "gpu"),
        ("dockerd --default-runtime=gpu -H fd://", "gpu"),
        ("dockerd --default-runtime gpu --default-runtime=runc", "runc"),
        ("dockerd --default-runtime", ""),
        ("dockerd --default-ulimit nofile=64", None),
    ],
)
def test_the_default_runtime(words: str, default: str | None) -> None:
    assert read_words(words.split()).default_runtime == default


def test_the_other_settings() -> None:
    line = read_words(
        [
            "dockerd",
            "--add-runtime",
            "gpu=/usr/bin/gpu",
            "--add-runtime=kata=/opt/kata=1",
            "--config-file",
            "/a.json",
        ]
    )
    assert line.runtimes == {"gpu": "/usr/bin/gpu", "kata": "/opt/kata=1"}
    assert line.file == Path("/a.json")
    assert read_words(["dockerd"]).file == DAEMON_JSON


def test_variables_are_words_of_their_own_only_without_braces() -> None:
    variables = {"OPTS": "-H unix:///a --label 'x y'", "NAME": "a b", "NONE": ""}
    words = "/usr/sbin/dockerd $OPTS ${NAME} $NONE --label=${NAME}/c $UNKNOWN"
    assert expand(words, variables) == [
        *("/usr/sbin/dockerd", "-H", "unix:///a", "--label", "x y"),
        *("a b", "--label=a b/c"),
    ]
    assert expand("dockerd $OPTS", {"OPTS": "it's"}) == ["dockerd", "it's"]


def test_an_environment_file() -> None:
    text = '# DOCKER_OPTS=no\n;A=no\n\nDOCKER_OPTS="--default-runtime \\\ngpu"\n A = b c \nnothing\nB=\'x\n'
    assert read_variables(text) == {
        "DOCKER_OPTS": "--default-runtime gpu",
        "A": "b c",
        "B": "'x",
    }


def test_what_systemctl_shows_of_the_environment() -> None:
    shown = '"DOCKER_OPTS=-H unix:///run/a --default-runtime gpu" PATH=/bin:/usr/bin'
    assert read_assignments(shown) == {
        "DOCKER_OPTS": "-H unix:///run/a --default-runtime gpu",
        "PATH": "/bin:/usr/bin",
    }
    assert read_assignments("") == {}
