"""Where a model or a data set lies, as a URI. Pure; the operator checks RLJobs with it.

file:///path            a folder or file that is there already
pvc://claim/path        of a volume claim: only the operator can mount one, and names the mounted path
s3://bucket/key         an object, or all below a key
hf://owner/name[@revision][/path]    of the Hugging Face hub; hf://datasets/owner/name for a data set
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from crescendo.common.errors import ConfigError

SCHEMES: Final = ("file", "pvc", "s3", "hf")
_URI: Final = re.compile(r"([a-z0-9]+)://(.+)", re.ASCII)
_CLAIM: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HUB_DATASETS: Final = "datasets/"
_EXAMPLES: Final = {
    "file": "file:///path",
    "pvc": "pvc://claim/path",
    "s3": "s3://bucket/key",
    "hf": "hf://owner/name or hf://owner/name@revision/path",
}


class Kind(StrEnum):
    """What is fetched, which says which files belong to it."""

    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True)
class Source:
    """A parsed URI. owner: the claim or bucket, or owner/name[@revision] of the hub; path: below it, may be empty."""

    uri: str
    scheme: str
    owner: str
    path: str


def parse(uri: str, kind: Kind, *, field: str = "URI") -> Source:
    """Raises ConfigError naming the field, the URI and the form that its scheme has."""
    found = _URI.fullmatch(uri)
    if found is None or found[1] not in SCHEMES:
        raise _wrong(field, uri, "it must begin with " + ", ".join(f"{scheme}://" for scheme in SCHEMES), "file")
    scheme, rest = found[1], found[2]
    if ".." in rest.split("/"):
        raise _wrong(field, uri, "`..` may not stand in it", scheme)
    if scheme == "file":
        if not rest.startswith("/"):
            raise _wrong(field, uri, "the path must be absolute, with three slashes", scheme)
        return Source(uri, scheme, "", rest)
    if scheme == "hf":
        return _of_hub(uri, rest, kind, field)
    owner, _, path = rest.partition("/")
    if scheme == "pvc" and not _CLAIM.fullmatch(owner):
        raise _wrong(field, uri, f"{owner!r} is no name of a claim", scheme)
    return Source(uri, scheme, owner, path.strip("/"))


def _of_hub(uri: str, rest: str, kind: Kind, field: str) -> Source:
    is_dataset = rest.startswith(_HUB_DATASETS)
    if is_dataset and kind is Kind.MODEL:
        raise _wrong(field, uri, "it names a data set where a model is wanted", "hf")
    owner, _, path = rest.removeprefix(_HUB_DATASETS).partition("/")
    name, _, below = path.partition("/")
    if not owner or not name:
        raise _wrong(field, uri, "it must name owner and repository", "hf")
    prefix = _HUB_DATASETS if kind is Kind.DATASET else ""
    return Source(uri, "hf", f"{prefix}{owner}/{name}", below.strip("/"))


def _wrong(field: str, uri: str, rule: str, scheme: str) -> ConfigError:
    return ConfigError(f"{field} is {uri!r}: {rule}.", field=field, fix=f"Write it as {_EXAMPLES[scheme]}.")
