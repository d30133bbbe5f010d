"""A person's token between two requests: in a cookie that only the console's replicas can read.

Encrypted and authenticated (Fernet) with a key derived from the console's own certificate key, which all replicas
mount; without one, from a random key of this process. Scripts cannot read the cookie and other sites cannot send it.
"""

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Final

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crescendo.common.rpc.identity import IdentityFiles
from crescendo.console.cluster.reader import Person

COOKIE: Final = "crescendo_session"
LIFETIME_S: Final = 8 * 3600


class Sessions:
    """Seals and opens session cookies."""

    def __init__(self, secret: bytes) -> None:
        derived = HKDF(hashes.SHA256(), 32, salt=None, info=b"crescendo console session").derive(secret)
        self._box = Fernet(base64.urlsafe_b64encode(derived))

    @classmethod
    def from_environment(cls) -> "Sessions":
        """With the identity's key, or a random one."""
        files = IdentityFiles.from_environment()
        return cls(files.read()[0] if files is not None else secrets.token_bytes(32))

    def seal(self, person: Person) -> str:
        """The cookie's value."""
        return self._box.encrypt(json.dumps([person.name, person.token]).encode()).decode()

    def open(self, cookies: Mapping[str, str]) -> Person | None:
        """Whose session it is; None without one, or with an old or forged one."""
        try:
            name, token = json.loads(self._box.decrypt(cookies.get(COOKIE, "").encode(), ttl=LIFETIME_S))
        except (InvalidToken, ValueError):
            return None
        return Person(str(name), str(token))
