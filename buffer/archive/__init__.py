"""The archive: payloads of ended groups in Parquet files, locally or in an object store.

The archiver (`python -m crescendo.buffer.archive`) writes it; `Archive` reads it. docs/archive.md describes the files.
"""

from crescendo.buffer.archive.place import archive_url
from crescendo.buffer.archive.reader import Archive, ArchivedGroup
from crescendo.buffer.archive.schema import SCHEMA_VERSION
from crescendo.buffer.archive.service import start

__all__ = ["SCHEMA_VERSION", "Archive", "ArchivedGroup", "archive_url", "start"]
