"""Where a run's archive lies."""

from crescendo.common.config.schema import Config
from crescendo.common.runfolder import RunFolder


def archive_url(config: Config, folder: RunFolder) -> str:
    """The run's own folder below `archive.url`, or `archive/` in the run folder."""
    if not config.archive.url:
        return str(folder.archive.resolve())
    return f"{config.archive.url.rstrip('/')}/{folder.run_id()}"
