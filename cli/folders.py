"""Which run a command means: a path, a name under runs/, or the newest."""

from pathlib import Path

from crescendo.common.errors import RunFolderError
from crescendo.common.runfolder import RunFolder

RUNS = Path("runs")


def find_run(given: str) -> RunFolder:
    """Opens the run folder that an argument names; an empty one means the newest in runs/.

    Raises RunFolderError when there is none, or it is of another version.
    """
    if not given:
        return RunFolder.open_existing(_newest())
    path = Path(given)
    if not path.is_dir() and (RUNS / given).is_dir():
        path = RUNS / given
    if not path.is_dir():
        known = ", ".join(sorted(run.name for run in _runs())) or "none"
        raise RunFolderError(f"there is no run {given!r}; runs in {RUNS}/: {known}.", fix="Give a run folder.")
    return RunFolder.open_existing(path)


def _runs() -> list[Path]:
    return [path.parent for path in RUNS.glob("*/run.json")]


def _newest() -> Path:
    runs = _runs()
    if not runs:
        raise RunFolderError(
            f"there is no run in {RUNS}/.", fix="Give a run folder, or start one: crescendo run RECIPE"
        )
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
