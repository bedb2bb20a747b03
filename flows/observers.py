"""Who watches a stage being built on Prefect's behalf: progress, curve and lines for people on its page."""

import contextvars
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger

from flows.show.markdown import loss_markdown
from tasks.mechanism.progress import Progress, format_count, format_seconds

PROGRESS_INTERVAL_S = 3.0  # an update is a request, which costs the server 0.1 CPU-s, and its page looks every few s
CURVE_INTERVAL_S = 15.0  # the whole curve is drawn and sent anew each time


class PrefectObserver:
    """Shows progress on the task run's page. A thread talks to the server, so that a slow one holds up no stage."""

    def __init__(self, label: str, figures_key: str) -> None:
        self._label, self._figures_key = label, figures_key
        self._logger = get_run_logger()
        self._context = contextvars.copy_context()  # the artifact belongs to the task run of this context
        self._thread: ThreadPoolExecutor | None = None
        self._sending: Future[None] | None = None
        self._artifacts: dict[str, UUID] = {}
        self._last = 0.0
        self._curve: list[tuple[float, float]] = []
        self._curve_shown = time.monotonic()

    def __enter__(self) -> "PrefectObserver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread:
            # A stage that failed, or was cancelled, is not held up for the pictures that it still had to show.
            self._thread.shutdown(wait=error is None, cancel_futures=error is not None)

    def metric(self, name: str, value: float) -> None:
        """Final figures are shown when the stage has ended."""

    def rewind(self, step: int) -> None:
        """Steps that are taken again are drawn again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All curves go to MLflow; that of the loss is also drawn here now and then."""
        if "loss" not in values:
            return
        self._curve.append((step, values["loss"]))
        now = time.monotonic()
        if now - self._curve_shown >= CURVE_INTERVAL_S and len(self._curve) > 1 and not self._is_sending:
            self._curve_shown = now
            self.show_figures(loss_markdown(self._label, self._curve))

    def say(self, text: str) -> None:
        """Lines for people go to the flow run's log."""
        self._logger.info("%s: %s", self._label, text)

    def progress(self, description: str, total: float, unit: str) -> "TaskRunProgress":
        """Show it on the page, in the thread that talks to the server."""
        return TaskRunProgress(description, total, unit, self._show)

    def _show(self, bar: Progress) -> None:
        """Show it now and then, and always when it is done; skip it while the last one is still on its way."""
        is_over = bar.done >= bar.total
        now = time.monotonic()
        if not is_over and (now - self._last < PROGRESS_INTERVAL_S or self._is_sending):
            return
        self._last = now
        # Prefect refuses more than 100.
        self._send(self._show_progress, bar.description, min(100.0, bar.percent), _words(self._label, bar))

    def show_figures(self, markdown: str) -> None:
        """Show this in place of the figures shown before; "" shows none."""
        if markdown:
            self._send(self._show_figures, markdown)

    @property
    def _is_sending(self) -> bool:
        return self._sending is not None and not self._sending.done()

    def _send(self, show: Callable[..., None], *arguments: object) -> None:
        if self._thread is None:
            # One thread, so that an update never overtakes a later one.
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._sending = self._thread.submit(self._context.copy().run, self._attempt, show, *arguments)

    def _attempt(self, show: Callable[..., None], *arguments: object) -> None:
        try:
            show(*arguments)
        except Exception as error:  # a picture of progress is never worth a run
            self._logger.debug("progress was not shown: %s", error)

    def _show_progress(self, description: str, share: float, text: str) -> None:
        if description in self._artifacts:
            update_progress_artifact(self._artifacts[description], share, text)
        else:
            self._artifacts[description] = _created(create_progress_artifact(share, description=text))

    def _show_figures(self, markdown: str) -> None:
        known = self._artifacts.get(self._figures_key)
        if known:
            get_client(sync_client=True).update_artifact(known, ArtifactUpdate(data=markdown))
        else:
            made = create_markdown_artifact(markdown, key=self._figures_key, description=self._label)
            self._artifacts[self._figures_key] = _created(made)


def _created(artifact: object) -> UUID:
    assert isinstance(artifact, UUID)
    return artifact


def _words(label: str, bar: Progress) -> str:
    left = format_seconds(bar.seconds_left) if bar.rate > 0 else "?"
    counted = f"{format_count(bar.done)} of {format_count(bar.total)}, {format_count(bar.rate)}/s"
    return f"{label}: {bar.description}, {counted}, {left} left"


class TaskRunProgress(Progress):
    """Progress that is shown on a task run's page."""

    def __init__(self, description: str, total: float, unit: str, show: Callable[[Progress], None]) -> None:
        super().__init__(description, total, unit)
        self._show = show
        self._shown = self._started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._show(self)

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done; the page is told about once a second."""
        super().advance(amount)
        now = time.monotonic()
        if now - self._shown >= 1.0:
            self._shown = now
            self._show(self)
