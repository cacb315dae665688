"""What restic's words mean, as far as no test with restic itself hears them."""

from __future__ import annotations

import pytest

from pannier.backups.messages import failure
from pannier.core.errors import (
    BackupFailed,
    Denied,
    PannierError,
    RepositoryMissing,
    TargetUnavailable,
)
from pannier.host.process import Finished

ASKS = "\nIs there a repository at the following location?\ns3:https://host/bucket\n"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            'Fatal: unable to save snapshot: Write: sftp: "Failure" (SSH_FX_FAILURE)',
            BackupFailed,
            "mostly full",
        ),
        (
            "Fatal: unable to open config file: Stat: The AWS Access Key Id you provided does not exist in our records."
            + ASKS,
            Denied,
            "lets nobody in",
        ),
        (
            "Fatal: unable to open config file: Stat: something that nobody has heard of" + ASKS,
            TargetUnavailable,
            "something that nobody has heard of",
        ),
        (
            "Fatal: unable to open config file: Stat: The specified key does not exist." + ASKS,
            RepositoryMissing,
            "there is no repository",
        ),
        (
            "Fatal: unable to open config file: Lstat: file does not exist" + ASKS,
            RepositoryMissing,
            "there is no repository",
        ),
    ],
)
def test_what_is_made_of_it(said: str, kind: type[PannierError], words: str) -> None:
    found = failure(Finished(("restic",), 1, "", said), where="backup target offsite")
    assert type(found) is kind
    assert words in found.message
