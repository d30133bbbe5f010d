"""A person's token between two requests: in a cookie that only the console's replicas can read.

Encrypted and authenticated (Fernet) with a key derived from the console's own certificate key, which all replicas
mount; without one, from a random key of this process. A renewed certificate ends the sessions: a replica that started
since knows no other key, and all must agree. Scripts cannot read the cookie and other sites cannot send it.
Forms that change something carry a second proof, derived from the cookie, which a page of another site cannot know.
"""

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Final

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crescendo.common.errors import RequestError
from crescendo.common.rpc.identity import IdentityFiles
from crescendo.console.cluster.reader import Person

COOKIE: Final = "crescendo_session"
LIFETIME_S: Final = 8 * 3600
MAX_COOKIE_BYTES: Final = 3900  # browsers drop cookies of more than 4,096 bytes, name and attributes included


class Sessions:
    """Seals and opens session cookies. files: where the secret comes from, and its successors."""

    def __init__(self, secret: bytes, files: IdentityFiles | None = None) -> None:
        self._files = files
        self._stamp = 0
        self._take(secret)

    def _take(self, secret: bytes) -> None:
        self._box = Fernet(base64.urlsafe_b64encode(_derived(secret, b"crescendo console session")))
        self._form_key = _derived(secret, b"crescendo console form")

    def _refresh(self) -> None:
        """Takes the key of a certificate that was renewed since."""
        stamp = self._files.stamp() if self._files is not None else 0
        if self._files is not None and stamp not in (0, self._stamp):
            self._take(self._files.read()[0])
            self._stamp = stamp

    @classmethod
    def from_environment(cls) -> "Sessions":
        """With the identity's key, or a random one."""
        files = IdentityFiles.from_environment()
        return cls(files.read()[0] if files is not None else secrets.token_bytes(32), files)

    def seal(self, person: Person) -> str:
        """The cookie's value; raises RequestError when no browser would keep it."""
        self._refresh()
        sealed = self._box.encrypt(json.dumps([person.name, person.token]).encode()).decode()
        if len(sealed) > MAX_COOKIE_BYTES:
            raise RequestError(
                f"the token has {len(person.token)} characters, too many for a browser's cookie.",
                field="token",
                fix="Use a shorter one: kubectl create token NAME.",
            )
        return sealed

    def open(self, cookies: Mapping[str, str]) -> Person | None:
        """Whose session it is; None without one, or with an old or forged one."""
        self._refresh()
        try:
            name, token = json.loads(self._box.decrypt(cookies.get(COOKIE, "").encode(), ttl=LIFETIME_S))
        except (InvalidToken, ValueError):
            return None
        return Person(str(name), str(token))

    def form_proof(self, cookies: Mapping[str, str]) -> str:
        """What a form of this session carries."""
        self._refresh()
        return hmac.new(self._form_key, cookies.get(COOKIE, "").encode(), "sha256").hexdigest()

    def proves(self, cookies: Mapping[str, str], proof: str) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_proof(cookies).encode(), proof.encode())


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(secret)
