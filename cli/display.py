"""Shows statuses while a run goes on: a live panel in a terminal, lines elsewhere or with --plain."""

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from crescendo.cli.follow import Update
from crescendo.cli.view import PlainLines, event_line, status_view

REFRESHES_PER_S = 4


class Display:
    """A context; `show` takes statuses, `say` things for people that stay on the screen."""

    def __init__(self, *, plain: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.plain = plain or not self.console.is_terminal
        self._lines = PlainLines()
        self._live: Live | None = None
        self._notice = ""
        self._view: RenderableType = Spinner("dots", Text(" starting", style="cyan"))

    def __enter__(self) -> "Display":
        if not self.plain:
            self._live = Live(self._content(), console=self.console, refresh_per_second=REFRESHES_PER_S)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, update: Update) -> None:
        """The newest status, and its events: all of them as lines; those that matter above a live view."""
        for event in update.events:
            if self.plain or event.severity != "info" or event.kind.startswith("stage."):
                self.say(event_line(update.status, event))
        if self.plain:
            for line in self._lines.lines(update.status):
                self.say(line)
            return
        self._view = status_view(update.status)
        self._update()

    def say(self, text: str) -> None:
        """A line above the live view."""
        self.console.print(Text(text))
        self.console.file.flush()

    def notice(self, text: str) -> None:
        """A line that stays under the live view, such as how to end at once."""
        self._notice = text
        if self.plain:
            self.say(text)
        else:
            self._update()

    def _update(self) -> None:
        if self._live is not None:
            self._live.update(self._content())

    def _content(self) -> RenderableType:
        return Group(self._view, Text(self._notice, style="yellow")) if self._notice else self._view
