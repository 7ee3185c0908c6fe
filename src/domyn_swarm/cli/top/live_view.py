"""The live view: the app, and its screens for a question, a number and a log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.coordinate import Coordinate
from textual.screen import ModalScreen, Screen
from textual.validation import Integer
from textual.widgets import DataTable, Footer, Input, Label, RichLog, Static
from typing_extensions import override

from domyn_swarm.cli.rendering import colour
from domyn_swarm.cli.top import cells
from domyn_swarm.cli.top.cells import Source
from domyn_swarm.errors import SwarmError, quantity
from domyn_swarm.model import FailureGroup, utc_now
from domyn_swarm.swarm.snapshot import JobSnapshot, SwarmSnapshot

_LOG_EVERY_S = 1.0
_MOST_REPLICAS = 10_000


class Question(ModalScreen[bool]):
    """A yes-or-no question. Any key but `y` means no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    @override
    def compose(self) -> ComposeResult:
        """The question and the keys."""
        with Vertical(classes="box"):
            yield Label(self._question)
            yield Label("y: yes   n: no", classes="dim")

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class AskReplicas(ModalScreen[int | None]):
    """Asks for the number of replicas; None if the user left the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back")]

    def __init__(self, now: int) -> None:
        super().__init__()
        self._now = now

    @override
    def compose(self) -> ComposeResult:
        """An input field with the present number."""
        with Vertical(classes="box"):
            yield Label(f"Replicas ({self._now} now); Enter scales, Escape goes back")
            yield Input(
                str(self._now), type="integer", validators=[Integer(1, _MOST_REPLICAS)], id="count"
            )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Close with a valid number. An invalid one stays in the field, marked as invalid."""
        if event.validation_result is None or event.validation_result.is_valid:
            self.dismiss(int(event.value))

    def action_leave(self) -> None:
        """Close without a number."""
        self.dismiss(None)


class LogScreen(Screen[None]):
    """The end of a log, refreshed about once a second."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,l", "app.pop_screen", "Back")]

    def __init__(self, title: str, read: Callable[[], list[str]]) -> None:
        super().__init__()
        self._title = title
        self._read = read
        self._shown: list[str] = []

    @override
    def compose(self) -> ComposeResult:
        """The title, the log, the keys."""
        yield Label(self._title, classes="title")
        yield RichLog(wrap=True, markup=False, highlight=False, max_lines=1000)
        yield Footer()

    def on_mount(self) -> None:
        """Start reading."""
        self.load()
        self.set_interval(_LOG_EVERY_S, self.load)

    @work(thread=True, exclusive=True)
    def load(self) -> None:
        """Read on a separate thread, because file systems may be slow."""
        try:
            lines = self._read()
        except SwarmError as error:
            lines = [str(error)]
        self.app.call_from_thread(self._show, lines)

    def _show(self, lines: list[str]) -> None:
        if lines == self._shown:
            return
        log = self.query_one(RichLog)
        if lines[: len(self._shown)] != self._shown:
            log.clear()
            self._shown = []
        for line in lines[len(self._shown) :]:
            log.write(Text.from_ansi(line))
        self._shown = lines


Rows = list[tuple[str, tuple[str, ...]]]
_COLOURED = 1  # the second column of both tables is a state


class TopApp(App[None]):
    """Shows a snapshot of a swarm every `every_s` seconds. Scales and cancels only after the user
    has confirmed it.
    """

    TITLE = "domyn-swarm top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: auto; padding: 0 1; }
    #replicas { height: 2fr; }
    #jobs { height: 1fr; min-height: 4; }
    #chosen { height: auto; max-height: 6; padding: 0 1; }
    #problem { height: auto; padding: 0 1; color: $text-error; }
    .dim { color: $text-muted; }
    .title { padding: 0 1; text-style: bold; }
    Question, AskReplicas { align: center middle; }
    .box { width: 64; max-width: 90%; height: auto; padding: 1 2; border: solid $accent;
           background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("l", "log", "Log"),
        Binding("e", "endpoint_log", "Endpoint's log"),
        Binding("s", "scale", "Scale"),
        Binding("c", "cancel", "Cancel job"),
        Binding("r", "refresh", "Refresh"),
    ]

    def __init__(self, source: Source, *, every_s: float = 2.0) -> None:
        super().__init__()
        self._source = source
        self._every_s = every_s
        self._swarm: SwarmSnapshot | None = None
        self._refreshing = False
        self._failures: dict[str, tuple[int, tuple[FailureGroup, ...]]] = {}

    @property
    def swarm(self) -> SwarmSnapshot | None:
        """The last snapshot."""
        return self._swarm

    @override
    def compose(self) -> ComposeResult:
        """Summary, replicas, jobs, the chosen job, the keys."""
        yield Static("Loading …", id="summary", markup=False)
        yield DataTable(id="replicas", cursor_type="row", zebra_stripes=True, cell_padding=1)
        yield DataTable(id="jobs", cursor_type="row", zebra_stripes=True, cell_padding=1)
        yield Static("", id="chosen", markup=False)
        yield Static("", id="problem", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Add the columns and start refreshing."""
        for table, columns in (("#replicas", cells.REPLICA_COLUMNS), ("#jobs", cells.JOB_COLUMNS)):
            for column in columns:
                self.query_one(table, DataTable).add_column(column, key=column)
        self.action_refresh()
        self.set_interval(self._every_s, self.action_refresh)

    # -- refreshing ------------------------------------------------------------------------------

    def action_refresh(self) -> None:
        """Start a refresh, unless one is still running."""
        if not self._refreshing:
            self._refreshing = True
            self.take_snapshot()

    @work(thread=True, group="snapshot")
    def take_snapshot(self) -> None:
        """Take a snapshot on a thread, because platforms may be slow to answer, and show it."""
        try:
            swarm = self._source.snapshot()
        except SwarmError as error:
            self.call_from_thread(self._show_problem, str(error))
            return
        finally:
            self._refreshing = False
        self.call_from_thread(self._show, swarm, utc_now())

    def _show(self, swarm: SwarmSnapshot, now: datetime) -> None:
        self._swarm = swarm
        self.title = swarm.name
        lines = cells.summary(swarm, now.astimezone(UTC))
        self.query_one("#summary", Static).update(
            "\n".join([f"{swarm.name}  {lines[0]}", *lines[1:]])
        )
        _fill(
            self.query_one("#replicas", DataTable),
            [(str(replica.index), cells.replica_row(replica)) for replica in swarm.replicas],
        )
        _fill(
            self.query_one("#jobs", DataTable),
            [(job.job_id, cells.job_row(job)) for job in reversed(swarm.jobs)],
        )
        self._show_problem("")
        self._show_chosen()

    def _show_problem(self, problem: str) -> None:
        self.query_one("#problem", Static).update(problem)

    # -- the chosen job --------------------------------------------------------------------------

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the details of the replica or job that the cursor is on now."""
        del event
        self._show_chosen()

    def _chosen_replica(self) -> list[str]:
        """The cause of the chosen replica's state, which the table may cut."""
        chosen = _chosen(self.query_one("#replicas", DataTable))
        replicas = self._swarm.replicas if self._swarm is not None else ()
        return [
            f"replica {replica.index}: {replica.reason}"
            for replica in replicas
            if str(replica.index) == chosen and replica.reason
        ]

    def _chosen_job(self) -> JobSnapshot | None:
        chosen = _chosen(self.query_one("#jobs", DataTable))
        jobs = self._swarm.jobs if self._swarm is not None else ()
        return next((job for job in jobs if job.job_id == chosen), None)

    def _show_chosen(self) -> None:
        job, lines = self._chosen_job(), self._chosen_replica()
        text = self.query_one("#chosen", Static)
        if job is None:
            text.update("\n".join([*lines, "no jobs"]))
            return
        grouped_rows, groups = self._failures.get(job.job_id, (0, ()))
        if job.output is not None and job.rows_failed != grouped_rows:
            self.group_failures(job)
        text.update("\n".join([*lines, *cells.failure_lines(job, groups)]))

    @work(thread=True, exclusive=True, group="failures")
    def group_failures(self, job: JobSnapshot) -> None:
        """Group the failures of the chosen job, which reads its whole checkpoint."""
        try:
            groups = self._source.failures(job.job_id)
        except SwarmError as error:
            self.call_from_thread(self._show_problem, str(error))
            groups = ()
        self._failures[job.job_id] = (job.rows_failed, groups)
        self.call_from_thread(self._show_chosen)

    # -- acting ------------------------------------------------------------------------------------

    def action_log(self) -> None:
        """Open the log of the chosen replica."""
        chosen = _chosen(self.query_one("#replicas", DataTable))
        if chosen is not None:
            index = int(chosen)
            self.push_screen(LogScreen(f"replica {index}", lambda: self._source.log(index)))

    def action_endpoint_log(self) -> None:
        """Open the log of the endpoint."""
        self.push_screen(LogScreen("endpoint", lambda: self._source.log(None)))

    @work
    async def action_scale(self) -> None:
        """Ask for a number of replicas, then for confirmation, and scale."""
        if self._swarm is None:
            return
        now = self._swarm.replicas_wanted
        wanted = await self.push_screen_wait(AskReplicas(now))
        if wanted is None or wanted == now:
            return
        question = f"Scale {self._swarm.name} from {now} to {quantity(wanted, 'replica')}?"
        if await self.push_screen_wait(Question(question)):
            self.act(lambda: self._source.scale(wanted))

    @work
    async def action_cancel(self) -> None:
        """Cancel the chosen job, after confirmation."""
        job = self._chosen_job()
        if job is None or job.status.final:
            self._show_problem("Choose a running job.")
            return
        question = f"Cancel {job.job_id} ({job.name})? Finished rows are kept."
        if await self.push_screen_wait(Question(question)):
            self.act(lambda: self._source.cancel(job.job_id))

    @work(thread=True, group="act")
    def act(self, operation: Callable[[], None]) -> None:
        """Run an operation on a thread, then refresh."""
        try:
            operation()
        except SwarmError as error:
            self.call_from_thread(self._show_problem, str(error))
            return
        self.call_from_thread(self.action_refresh)


def _chosen(table: DataTable[Text]) -> str | None:
    if not table.row_count:
        return None
    key = table.coordinate_to_cell_key(Coordinate(table.cursor_row, 0)).row_key
    return key.value


def _styled(cells: tuple[str, ...]) -> list[Text]:
    """The cells as `Text`, so that none is parsed as markup; the state in its colour."""
    return [
        Text(cell, style=colour(cell) if column == _COLOURED else "")
        for column, cell in enumerate(cells)
    ]


def _fill(table: DataTable[Text], wanted: Rows) -> None:
    """Show these rows in the table, by key. The cursor stays on its row."""
    chosen = _chosen(table)
    if [key.value for key in table.rows] == [key for key, _ in wanted]:
        for key, cells in wanted:
            for column, cell in zip(table.columns, _styled(cells), strict=True):
                if table.get_cell(key, column) != cell:
                    table.update_cell(key, column, cell, update_width=True)
        return
    table.clear()
    for key, cells in wanted:
        table.add_row(*_styled(cells), key=key)
    keys = [key for key, _ in wanted]
    if chosen in keys:
        table.move_cursor(row=keys.index(chosen))
