"""The change of layout at a stage's boundary: who asks for it, and what it is.

    gate -> (rollback) -> commit -> `require` raises Relayout -> what does not fit is ended -> the next attempt

A change is an attempt like any other (session.py): it starts what is missing in the layout of the newest commit's
stage, and restores that commit, whose checkpoint loads in any layout. So a death anywhere in between needs no case of
its own: the next attempt reads the same commit. Nothing is lost or repeated, because nothing happens between the
commit and the change. A gate's rollback is a commit of the stage that follows; a death before it goes back to the
older stage, and so to its layout.
"""

from typing import Any

from crescendo.common.config.layouts import Layout, layout_of, stage_at
from crescendo.common.config.schema import Config
from crescendo.controller.loop.commits import Manifest


class Relayout(Exception):
    """A commit stands whose stage wants another layout than the one that runs. Not a failure."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(f"the next stage runs on {layout}")


def require(running: Layout, wanted: Layout) -> None:
    """Raises Relayout when they differ; to be called when a commit of the new stage has been made."""
    if running != wanted:
        raise Relayout(wanted)


def committed(config: Config, manifest: Manifest | None) -> tuple[str, Layout]:
    """The stage that a commit goes on with, and its layout; without one, those of the run's beginning."""
    state: dict[str, Any] = manifest.state if manifest is not None else {}
    stage = stage_at(config, int(state.get("step_index", 0)), str((state.get("stages") or {}).get("stage", "")))
    return (stage.name if stage is not None else ""), layout_of(config, stage)
