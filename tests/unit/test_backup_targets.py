"""Where backups may go, and which one is meant."""

from __future__ import annotations

import pytest

from pannier.core.backups import (
    Secrets,
    SftpServer,
    StoredBackup,
    TargetKind,
    chosen_backup,
    host_of,
    place_of,
    sftp_server,
    strangers,
)
from pannier.core.errors import InvalidInput, NotFound


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("/mnt/backups", TargetKind.PATH),
        ("sftp:me@host:/srv/backups", TargetKind.SFTP),
        ("sftp:host:backups", TargetKind.SFTP),
        ("sftp://me@host//srv/backups", TargetKind.SFTP),
        ("sftp://me@[2001:db8::1]:2222//srv/backups", TargetKind.SFTP),
        ("s3:https://s3.example.org/bucket", TargetKind.S3),
        ("s3:http://127.0.0.1:9000/bucket/folder", TargetKind.S3),
        ("s3:s3.amazonaws.com/bucket", TargetKind.S3),
    ],
)
def test_places(url: str, place: TargetKind) -> None:
    assert place_of(url) is place


@pytest.mark.parametrize(
    "url",
    ["", "host:/x", "/a b\n", "/x" * 300, "sftp:me@host", "sftp:a b@host:/x", "s3:https://host"],
)
def test_what_is_no_place(url: str) -> None:
    with pytest.raises(InvalidInput, match="no place for backups"):
        place_of(url)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("sftp:me@host:/srv", SftpServer("host", "me", None)),
        ("sftp:host:srv", SftpServer("host", None, None)),
        (
            "sftp:host:22/srv",
            SftpServer("host", None, None),
        ),  # a folder called 22, as restic reads it
        ("sftp://me@host:2222//srv", SftpServer("host", "me", 2222)),
        ("sftp://[2001:db8::1]//srv", SftpServer("2001:db8::1", None, None)),
    ],
)
def test_servers(url: str, server: SftpServer) -> None:
    assert sftp_server(url) == server


def test_secrets_are_not_shown() -> None:
    shown = repr(Secrets(password="s3cret", s3_key_id="s3cret", ssh_key="s3cret"))
    assert "s3cret" not in shown


def _backup(id: str, at: str, volume: str = "data", host: str = "pannier-c0ffee") -> StoredBackup:
    return StoredBackup(id=id, host=host, made_at=at, tags={"volume": volume})


BACKUPS = [
    _backup("1f0c5a2e", "2026-01-02T00:00:00.5Z"),
    _backup("1f9999aa", "2026-01-01T00:00:00Z"),
    _backup("2b2b2b2b", "2026-01-03T00:00:00Z", volume="other"),
]


def test_the_newest_of_the_volume_is_meant_or_the_one_that_is_named() -> None:
    assert chosen_backup(BACKUPS, volume="data", backup=None).id == "1f0c5a2e"
    assert chosen_backup(BACKUPS, volume="data", backup="1f99").id == "1f9999aa"
    with pytest.raises(InvalidInput, match="2 backups begin with 1f"):
        chosen_backup(BACKUPS, volume="data", backup="1f")
    for backup in (None, "2b2b"):
        with pytest.raises(NotFound, match="of a volume gone"):
            chosen_backup(BACKUPS, volume="gone", backup=backup)
    with pytest.raises(NotFound, match="no backup 2b2b"):
        chosen_backup(BACKUPS, volume="data", backup="2b2b")


def test_only_other_clusters_are_strangers() -> None:
    others = [_backup("aa", "", host=host_of("badcafe")), _backup("bb", "", host="my-laptop")]
    assert strangers([*BACKUPS, *others], cluster="c0ffee") == ["badcafe"]
