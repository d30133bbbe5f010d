"""The run's checkpoint store, seen by the controller: manifests, what workers on other machines need, the export."""

from crescendo.controller.store.commits import CHECKPOINTS, StoredCommits, open_store, open_stored, store_fields
from crescendo.controller.store.inputs import bring_export, with_inputs

__all__ = [
    "CHECKPOINTS",
    "StoredCommits",
    "bring_export",
    "open_store",
    "open_stored",
    "store_fields",
    "with_inputs",
]
