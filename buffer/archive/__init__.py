"""The archive: payloads of ended groups in Parquet files, locally or in an object store.

The archiver (`python -m crescendo.buffer.archive`, service.py) writes it, reader.py reads it; docs/archive.md describes
the files. Importing this package alone loads no Parquet library: the controller only needs to know where it lies.
"""

from crescendo.buffer.archive.place import archive_url

__all__ = ["archive_url"]
