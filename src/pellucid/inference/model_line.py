"""Everyone who waits for one model, and the one thread that serves them.

Two kinds of work: inspections, one at a time, and batches of embeddings, made of the inputs of all
requests that wait. Interactive embeddings overtake at every boundary; inspections and bulk
embeddings take turns, and get one after a few interactive batches at the latest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from pellucid.errors import (
    CapabilityMissing,
    NotReady,
    Overloaded,
    PellucidError,
    TakesTooLong,
    WorkerReplaced,
)
from pellucid.inference.batch_encoder import BatchEncoder, Outcome
from pellucid.inference.batching import TokenBudget
from pellucid.inference.embedding_job import EmbeddingJob, Encoded
from pellucid.inference.engine import Priority, Waiting
from pellucid.inference.events import IGNORED, BatchRun, Happening, InferenceEvents
from pellucid.inference.lanes import Lane, LaneBatch
from pellucid.inference.pace import Pace, retry_after_s
from pellucid.inference.worker import Ticket, Work
from pellucid.models.backend import Backend, EmbeddingInput
from pellucid.settings import Settings

logger = logging.getLogger("pellucid.inference")

T = TypeVar("T")

_INTERACTIVE_IN_A_ROW = 4  # batches, while anybody else waits
_FAILED_BATCHES_IN_A_ROW = 3  # then the model is tried with an input that is known to be good
_RETRY_S = 5
_TRIAL_TEXT = "A short text."


class ModelLine:
    """Thread-safe. Requests are opened in an event loop, and answered there."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        *,
        events: InferenceEvents = IGNORED,
        on_condemned: Callable[[Backend], Callable[[], None]] = lambda backend: lambda: None,
    ) -> None:
        """``on_condemned`` is told once that the model is given up; what it returns is called when
        nothing runs in the backend any more, perhaps never."""
        self.backend = backend
        self._name = backend.info.model_id
        self._settings = settings
        self._events = events
        self._on_condemned = on_condemned
        self._changed = threading.Condition()  # its lock guards everything below
        self._jobs: set[EmbeddingJob] = set()  # open ones, those that have no inputs yet as well
        self._lanes: dict[Priority, Lane] = {
            "interactive": Lane("interactive"),
            "bulk": Lane("bulk"),
        }
        self._tickets: deque[Ticket[object]] = deque()
        self._running: Ticket[object] | None = None
        self._interactive_in_a_row = 0
        self._bulk_is_next = True
        self._budget = TokenBudget(settings.max_batch_tokens)
        self._pace = Pace()
        self._mean_ticket_s = 0.0
        self._failed_in_a_row = 0  # batches
        self._stopping = False
        self._condemned: str | None = None  # why
        self._bury: Callable[[], None] = lambda: None
        self._may_bury = False  # once everybody has been answered
        self._has_ended = False  # the thread: nothing runs in the backend any more
        self._may_take_s = math.inf  # what runs now
        self._must_end_by = math.inf  # time.monotonic(), of what runs now
        self._idle_since: float | None = time.monotonic()
        self._trial_inputs: list[EmbeddingInput] | None = None
        self._encoder = BatchEncoder(backend, events=events)
        self._trial_encoder = BatchEncoder(backend, events=IGNORED)
        self._thread = threading.Thread(target=self._serve, name=f"for {self._name}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------ embeddings

    def open(
        self, lane: Priority, *, on_done: Callable[[], None], stops_at_error: bool
    ) -> EmbeddingJob:
        """A place in ``lane`` for a request of the running loop, whose inputs are ``submit``ted.

        ``on_done`` is called once the model is not needed for it any more; not when this raises:
        Overloaded, NotReady, WorkerReplaced.
        """
        future: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        job = EmbeddingJob(lane, future=future, on_done=on_done, stops_at_error=stops_at_error)
        with self._changed:
            self._admit(lane)
            self._jobs.add(job)
        return job

    def submit(
        self, job: EmbeddingJob, inputs: Sequence[EmbeddingInput], *, timeout_s: float = math.inf
    ) -> None:
        """The job's inputs, which are to be done within ``timeout_s``: ``job.future`` has the
        answer. Raises Overloaded, TakesTooLong, and what the job was answered with meanwhile."""
        with self._changed:
            if not job.is_open:
                raise job.error or NotReady(phase="shutting down", retry_after_s=_RETRY_S)
            tokens = sum(given.input_ids.size for given in inputs)
            try:
                self._admit_tokens(job.lane, tokens, timeout_s=timeout_s)
            except PellucidError:
                self._happened("refused")
                raise
            if not inputs:
                self._close(job)
            else:
                self._enqueue(job, inputs)
        if not inputs:
            EmbeddingJob.answer([job])

    def _enqueue(self, job: EmbeddingJob, inputs: Sequence[EmbeddingInput]) -> None:
        job.give(inputs)
        self._lanes[job.lane].add(job)
        if job.lane == "interactive" and not job.is_trial:
            self._pace.interactive_came(time.monotonic())
        self._changed.notify()

    def abandon(self, job: EmbeddingJob) -> bool:
        """Nobody waits for it any more: its place is free at once, what runs for it is thrown
        away. False for a job that was answered, to which nothing happens."""
        with self._changed:
            if not job.is_open:
                return False
            self._close(job)
            at_work = job.at_work
        if not at_work:  # else the model must stay until the batch has ended
            job.release()
        return True

    def _close(self, job: EmbeddingJob, error: PellucidError | None = None) -> None:
        self._lanes[job.lane].discard(job)
        self._jobs.discard(job)
        job.close(error)

    # ----------------------------------------------------------------------------- inspections

    def run(
        self, work: Work[T], *, on_done: Callable[[], None], deadline: float = math.inf
    ) -> Ticket[T]:
        """Queue ``work``, which nobody waits for after ``deadline`` (``time.monotonic()``).

        ``on_done`` is called when it will not run any more; not when this raises: Overloaded,
        NotReady, WorkerReplaced.
        """
        ticket = Ticket(work, on_done, deadline=deadline)
        with self._changed:
            self._admit("inspection")
            self._tickets.append(ticket)  # type: ignore[arg-type]  # only its own caller reads T
            self._changed.notify()
        return ticket

    # ------------------------------------------------------------------------------- admission

    @property
    def waiting(self) -> int:
        """Requests in the line; those whose last input is at work are not counted."""
        with self._changed:
            return self._num_waiting()

    @property
    def waiting_by_lane(self) -> dict[str, Waiting]:
        """What waits in each lane, inspections among them."""
        with self._changed:
            waiting: dict[str, Waiting] = {
                name: Waiting(requests=self._num_waiting(name), tokens=lane.waiting_tokens)
                for name, lane in self._lanes.items()
            }
            inspections = self._num_waiting("inspection")
        return {**waiting, "inspection": Waiting(requests=inspections)}

    def _num_waiting(self, lane: Priority | Literal["inspection"] | None = None) -> int:
        """Requests of one kind, or of all."""
        jobs = (job for job in self._jobs if lane is None or job.lane == lane)
        waiting = sum(job.is_waiting and not job.is_trial for job in jobs)
        if lane in (None, "inspection"):
            waiting += sum(ticket.is_waiting for ticket in self._tickets)
        return waiting

    def _admit(self, lane: Priority | Literal["inspection"]) -> None:
        """Each lane has its own limit, so that many bulk requests keep nobody else out. Raises
        Overloaded, NotReady, WorkerReplaced."""
        if self._condemned is not None:
            raise self._replaced(self._condemned)
        if self._stopping:
            raise NotReady(phase="shutting down", retry_after_s=_RETRY_S)
        waiting = self._num_waiting(lane)
        if waiting >= self._settings.max_waiting:
            self._happened("refused")
            per_s = self._pace.throughput(time.monotonic())
            wait_s = 0.0 if per_s is None else self._tokens_ahead("bulk") / per_s
            raise Overloaded(
                model_id=self._name,
                waiting=waiting,
                max_waiting=self._settings.max_waiting,
                retry_after_s=retry_after_s(wait_s + len(self._tickets) * self._mean_ticket_s),
            )

    def _admit_tokens(self, lane: Priority, tokens: int, *, timeout_s: float) -> None:
        """Raises TakesTooLong where the request would be too long even alone, Overloaded where too
        much waits before it."""
        most_s, per_s = self._settings.request_timeout_s, self._pace.throughput(time.monotonic())
        if per_s is not None and tokens > per_s * most_s:
            raise TakesTooLong(
                model_id=self._name,
                tokens=tokens,
                estimated_s=round(tokens / per_s, 1),
                timeout_s=most_s,
                max_tokens=int(per_s * most_s),
            )
        ahead, room = self._tokens_ahead(lane), self._settings.max_waiting_tokens
        if per_s is not None:  # what can be done before it, if it shall be done in time
            left_s = max(0.0, min(timeout_s, most_s) - tokens / per_s)
            room = min(room, int(per_s * left_s))
        waiting = self._lanes[lane].waiting_tokens
        is_full = waiting + tokens > self._settings.max_waiting_tokens
        if ahead > room or (waiting and is_full):  # alone it is let in whatever its size
            raise Overloaded(
                model_id=self._name,
                unit="tokens",
                waiting=ahead if ahead > room else waiting,
                max_waiting=room if ahead > room else self._settings.max_waiting_tokens,
                retry_after_s=retry_after_s(None if per_s is None else ahead / per_s),
            )

    def _tokens_ahead(self, lane: Priority) -> int:
        """Tokens that run before a request that comes into ``lane`` now."""
        ahead = self._lanes["interactive"].waiting_tokens
        return ahead + self._lanes["bulk"].waiting_tokens if lane == "bulk" else ahead

    # -------------------------------------------------------------------------------- serving

    def _serve(self) -> None:
        try:
            while (turn := self._next_turn()) is not None:
                if isinstance(turn, Ticket):
                    self._run_ticket(turn)
                else:
                    self._run_batch(turn)
                del turn  # or the last answer would stay in memory until the next request
        except BaseException:  # the watchdog sees that the thread is gone, and answers for it
            logger.exception("the worker of %s died", self._name)
        with self._changed:
            self._has_ended = True
        self._bury_if_due()

    def _next_turn(self) -> Ticket[object] | LaneBatch | None:
        """Waits for work; None when the thread shall end."""
        with self._changed:
            self._running, self._must_end_by = None, math.inf
            while True:
                if self._condemned is not None:
                    return None
                turn = self._choose()
                if turn is not None:
                    break
                if self._stopping:
                    return None
                self._idle_since = self._idle_since or time.monotonic()
                self._changed.wait()
            self._idle_since = None
            now, stall_s = time.monotonic(), self._settings.stall_timeout_s
            if isinstance(turn, Ticket):
                self._running = turn
                self._may_take_s = max(0.0, turn.deadline - now) + stall_s
            else:
                most_s = max(stall_s, self._settings.request_timeout_s)  # then nobody waits for it
                self._may_take_s = min(most_s, stall_s * self._whole_batches_in(turn))
            self._must_end_by = now + self._may_take_s
        return turn

    def _whole_batches_in(self, batch: LaneBatch) -> float:
        """At least 1; more for one text longer than a whole batch, which takes longer in good
        health."""
        longest = max(given.input_ids.size for given in batch.inputs)
        return max(1.0, longest / self._settings.max_batch_tokens)

    def _choose(self) -> Ticket[object] | LaneBatch | None:
        interactive, bulk = self._lanes["interactive"], self._lanes["bulk"]
        others_wait = bulk.has_inputs or bool(self._tickets)
        if interactive.has_inputs and not (
            others_wait and self._interactive_in_a_row >= _INTERACTIVE_IN_A_ROW
        ):
            self._interactive_in_a_row += others_wait
            return interactive.next_batch(max_tokens=self._budget.tokens)
        self._interactive_in_a_row = 0
        if bulk.has_inputs and (self._bulk_is_next or not self._tickets):
            self._bulk_is_next = False
            max_tokens = self._pace.bulk_tokens(self._budget.tokens, time.monotonic())
            return bulk.next_batch(max_tokens=max_tokens)
        self._bulk_is_next = True
        return self._tickets.popleft() if self._tickets else None

    def _run_ticket(self, ticket: Ticket[object]) -> None:
        started = time.monotonic()
        if not ticket.run(self._name):
            return
        elapsed = time.monotonic() - started
        self._mean_ticket_s += 0.2 * (elapsed - self._mean_ticket_s)

    def _run_batch(self, batch: LaneBatch) -> None:
        for queue_s in batch.waits:
            self._events.waited(model_id=self._name, lane=batch.lane, queue_s=queue_s)
        is_trial = all(job.is_trial for job, _ in batch.pieces)
        encoder = self._trial_encoder if is_trial else self._encoder
        outcome = encoder.encode(batch.inputs, is_wanted=lambda row: batch.pieces[row][0].is_open)
        self._conclude(batch, outcome)
        self._learn(batch, outcome, is_trial=is_trial)

    def _conclude(self, batch: LaneBatch, outcome: Outcome) -> None:
        """Hand the results to their requests, and answer those that are done."""
        rows_of: dict[EmbeddingJob, list[int]] = {}
        for row, (job, _) in enumerate(batch.pieces):
            rows_of.setdefault(job, []).append(row)
        seconds = sum(forward.seconds for forward in outcome.passes)
        done: list[EmbeddingJob] = []
        with self._changed:
            for job, rows in rows_of.items():
                job.at_work = False
                if not job.is_open:  # abandoned meanwhile, or answered when the model was given up
                    done.append(job)
                    continue
                indices = [batch.pieces[row][1] for row in rows]
                errors = {
                    index: outcome.errors[row]
                    for index, row in zip(indices, rows, strict=True)
                    if row in outcome.errors
                }
                job.store(indices, outcome.vectors[rows], errors, seconds)
                if not job.num_left or (errors and job.stops_at_error):
                    self._close(job)
                    done.append(job)
        EmbeddingJob.answer(done)

    def _learn(self, batch: LaneBatch, outcome: Outcome, *, is_trial: bool) -> None:
        """What the batch tells about the model: its pace, its memory, its health."""
        for forward in outcome.passes:
            with self._changed:
                self._pace.batch_ran(
                    time.monotonic(),
                    tokens=forward.tokens,
                    padded_tokens=forward.padded_tokens,
                    seconds=forward.seconds,
                    budget=self._budget.tokens,
                    is_bulk=batch.lane == "bulk",
                )
                self._budget.succeeded(forward.padded_tokens)
            if not is_trial:
                self._events.batch_ran(
                    BatchRun(
                        model_id=self._name,
                        lane=batch.lane,
                        inputs=forward.inputs,
                        tokens=forward.tokens,
                        padded_tokens=forward.padded_tokens,
                        compute_s=forward.seconds,
                    )
                )
        with self._changed:
            for tokens in outcome.out_of_memory:
                self._budget.lower(tokens)
        if outcome.passes:
            self._failed_in_a_row = 0
        elif outcome.blames_model:
            self._failed_in_a_row += 1
        if self._failed_in_a_row >= _FAILED_BATCHES_IN_A_ROW:
            self._try_or_condemn(is_trial=is_trial)

    def _try_or_condemn(self, *, is_trial: bool) -> None:
        """Bad inputs only, or a bad model? An input that is known to be good tells."""
        inputs = self._inputs_of_trial()
        if not is_trial and inputs and not self._trial_encoder.encode(inputs).errors:
            self._failed_in_a_row = 0
            return
        self.condemn(f"failed on {self._failed_in_a_row} batches in a row")

    # -------------------------------------------------------------------------------- survival

    @property
    def is_healthy(self) -> bool:
        """Whether it answers: not given up, not dead, not overdue."""
        with self._changed:
            return self._condemned is None and self._trouble() is None

    def trouble(self) -> str | None:
        """What is wrong with the thread, in words to follow "what ran the model"; None: nothing
        that is not known yet."""
        with self._changed:
            return None if self._condemned is not None else self._trouble()

    def _trouble(self) -> str | None:
        if not self._thread.is_alive():
            return None if self._stopping else "died"
        if time.monotonic() > self._must_end_by:
            return f"did not come back within {self._may_take_s:.3g} s"
        return None

    def allow(self, seconds: float) -> None:
        """The whole process stood still for so long: what runs now may take so much longer."""
        with self._changed:
            self._must_end_by += seconds

    def try_out(self) -> None:
        """Have a model that has been idle for long embed a short text, in the order of all
        requests, but for nobody."""
        with self._changed:
            if not self._is_trial_due():
                return
        inputs = self._inputs_of_trial()
        if inputs is None:
            with self._changed:  # nothing to try it with: not at every look
                self._idle_since = self._idle_since and time.monotonic()
            return
        job = EmbeddingJob(
            "interactive",
            future=None,
            on_done=lambda: None,
            stops_at_error=True,
            is_trial=True,
        )
        with self._changed:
            if self._is_trial_due():
                self._jobs.add(job)
                self._enqueue(job, inputs)
                self._idle_since = None

    def _is_trial_due(self) -> bool:
        if self._idle_since is None or self._condemned is not None or self._stopping:
            return False
        idle_s = time.monotonic() - self._idle_since
        return self._failed_in_a_row > 0 or idle_s > self._settings.canary_interval_s

    def _inputs_of_trial(self) -> list[EmbeddingInput] | None:
        """None where the model gives no embeddings, or its tokenizer fails."""
        if self._trial_inputs is None:
            try:
                self._trial_inputs = self.backend.tokenize_for_embedding([_TRIAL_TEXT])
            except CapabilityMissing:
                return None
            except Exception:
                logger.exception("the tokenizer of %s failed", self._name)
                return None
        return self._trial_inputs

    def condemn(self, what: str) -> None:
        """Give the model up: answer all that it holds with WorkerReplaced, whatever still runs,
        and take nothing more. ``what`` follows "what ran the model"."""
        with self._changed:
            if self._condemned is not None:
                return
            self._condemned = what
            jobs, tickets = list(self._jobs), list(self._tickets)
            if self._running is not None:
                tickets.append(self._running)
            for job in jobs:
                self._close(job, self._replaced(what))
            self._tickets.clear()
            self._changed.notify_all()
        logger.error("what ran %s %s and is replaced", self._name, what)
        self._happened("restarted")
        try:  # first: whoever has the answer may ask again at once
            self._bury = self._on_condemned(self.backend)
        finally:
            for ticket in tickets:
                ticket.give_up(self._replaced(what))
            EmbeddingJob.answer(jobs)
            with self._changed:
                self._may_bury = True
        self._bury_if_due()

    def _bury_if_due(self) -> None:
        """Close what was given up, once: whichever comes last does it, the thread's end or the
        last answer."""
        with self._changed:
            if not (self._has_ended and self._may_bury):
                return
            bury, self._bury = self._bury, lambda: None
        bury()

    def _replaced(self, what: str) -> WorkerReplaced:
        return WorkerReplaced(model_id=self._name, what=what, retry_after_s=_RETRY_S)

    def stop(self, *, timeout_s: float = 5.0) -> bool:
        """Let the line run empty, then end the thread; False when it has not ended in time. A
        thread that was given up is not waited for."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            is_given_up = self._condemned is not None
        if is_given_up:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _happened(self, what: Happening) -> None:
        self._events.happened(what, model_id=self._name)
