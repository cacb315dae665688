"""What the authority remembers of the certificates that it gave to users: it cannot ask them.

The newest of each user is in ``users/NAME.crt`` beside the authority's files, and only its key is renewed. So a new one for
a new key ends the renewals of the one before. Certificates that an earlier version gave out are not there until they are
renewed.
"""

from __future__ import annotations

from pathlib import Path

from pannier.core.errors import PannierError
from pannier.pki import files
from pannier.pki.facts import CertificateFacts, facts_of
from pannier.pki.identity import check_user_name

_DIRECTORY = "users"


class IssuedToUsers:
    """The newest certificate of each user.

    ``directory`` has the authority's files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / _DIRECTORY

    def note(self, user: str, chain: str) -> None:
        """Remember a certificate, before it is given to the user: so none is out there that is not here.

        Raises:
            OSError: the disk refused.
        """
        files.private_directory(self.directory)
        path = self.directory / f"{check_user_name(user)}.crt"
        files.write(path, chain, mode=files.PUBLIC_MODE, replace=True)

    def newest(self, user: str) -> CertificateFacts | None:
        """That of one user; None where nothing is remembered.

        Raises:
            Denied, InvalidInput, OSError: it cannot be read.
        """
        path = self.directory / f"{check_user_name(user)}.crt"
        return facts_of(files.read(path)) if path.exists() else None

    def all(self) -> list[CertificateFacts]:
        """All of them, by user. One that cannot be read is left out: its user can be given a new one.

        Raises:
            OSError: the directory cannot be read.
        """
        found = []
        for path in sorted(self.directory.glob("*.crt")):
            try:
                found.append(facts_of(files.read(path)))
            except PannierError:
                continue
        return found
