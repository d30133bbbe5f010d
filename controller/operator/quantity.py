"""Amounts of memory as Kubernetes writes them. Pure; read by the run file and the check of capacity."""

import re
from typing import Final

_QUANTITY: Final = re.compile(r"([0-9.]+)([A-Za-z]*)")
_UNITS: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def quantity_bytes(text: str) -> int | None:
    """A quantity in bytes; None for one that this does not read."""
    found = _QUANTITY.fullmatch(text)
    unit = _UNITS.get(found[2]) if found else None
    return int(float(found[1]) * unit) if found and unit else None
