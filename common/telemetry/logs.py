"""Structured logs: one JSON object a line, with run, worker and time, in the run folder's logs/<worker>.log."""

import json
import logging
import os
import sys
import time
from pathlib import Path


class _JsonFormatter(logging.Formatter):
    def __init__(self, run_id: str, worker_id: str) -> None:
        super().__init__()
        self._base = {"run": run_id, "worker": worker_id}

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._base,
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=False)


def setup_logging(folder: Path, run_id: str, worker_id: str, *, capture_output: bool) -> Path:
    """Sends the process's log records to folder/<worker_id>.log and returns that path.

    capture_output also sends file descriptors 1 and 2 there, so that what libraries print is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{worker_id}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if capture_output:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    handler = logging.StreamHandler(os.fdopen(descriptor, "a", buffering=1, encoding="utf-8"))
    handler.setFormatter(_JsonFormatter(run_id, worker_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return path
