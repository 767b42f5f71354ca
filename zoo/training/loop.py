"""The training loop: the one step, again and again, with validation, checkpoints and an honest log."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.data.batches import Batches
from zoo.data.prepare import Data
from zoo.domain import Batch, Task
from zoo.errors import InputError, Interrupted, TrainingError
from zoo.plans import Plan
from zoo.recipe import Train
from zoo.step import Setup, no_phase
from zoo.training import inference, state
from zoo.training.files import RunFolder
from zoo.training.meter import Meter
from zoo.training.recovery import RanOut, attempt
from zoo.training.schedule import learning_rate
from zoo.training.watcher import Watcher

MEASURED_STEPS = 3
"""Steps that are metered: the second holds the longest batch, when the optimizer's states exist."""


@dataclass
class Loop:
    """One run of a built setup over prepared data. `limit` is the bytes that a CPU may hold, None where none is set."""

    setup: Setup
    task: Task
    data: Data
    plan: Plan
    train: Train
    folder: RunFolder
    meter: Meter | None = None
    limit: int | None = None
    watcher: Watcher = field(default_factory=Watcher)
    progress: state.Progress = field(default_factory=state.Progress)

    def __post_init__(self) -> None:
        lengths = [self.task.length(e) for e in self.data.train]
        micro = self.progress.micro_batch_size or self.plan.micro_batch_size
        self.batches = Batches(lengths, self.train.global_batch_size, micro, self.train.seed)
        self.steps = self.train.max_steps or (self.train.epochs or 1) * len(self.batches)
        self.evaluate_every = self.train.evaluate_every or len(self.batches)
        self.longest = max(lengths)
        self._saved_step = self.progress.step
        self._writer: Any = None
        if self.train.early_stopping is not None and not self.data.valid:
            raise InputError(
                f"train.early_stopping: {self.train.early_stopping} needs a validation part to look at, and the split "
                f"{self.data.split} has none; give data.split.fractions a second number above 0"
            )

    def run(self) -> state.Progress:
        """Train to the end. Raises `Interrupted` after Ctrl-C and `TrainingError` for a loss that is not finite."""
        self._cut_log()
        if self.progress.step == 0:
            self._save()
        self.watcher.started(self.steps, self.progress.step)
        started = time.perf_counter() - self.progress.seconds
        with _ctrl_c() as interrupted, self._tensorboard():
            for step, micro_rows in self._remaining():
                if not self._one(step, micro_rows):
                    continue
                self.progress.seconds = time.perf_counter() - started
                due = self.progress.step % self.evaluate_every == 0 or self.progress.step == self.steps
                if due and self._evaluate():
                    self.watcher.stopped(f"no improvement in {self.train.early_stopping} evaluations")
                    break
                if interrupted:
                    self._check_weights()
                    self._save()
                    raise Interrupted(
                        f"stopped after step {self.progress.step} of {self.steps}; the state is saved: "
                        f"go on with --resume --output {self.folder.path}"
                    )
        self._stop_meter()
        self.progress.finished = True
        self._save()
        return self.progress

    def _remaining(self) -> Iterator[tuple[int, list[list[int]]]]:
        """Steps and their micro-batches from where the progress is, which may go back."""
        if self._out_of_patience():  # it was killed just after deciding to stop
            return
        known: tuple[Batches, int] | None = None
        steps: list[list[list[int]]] = []
        while self.progress.step < self.steps:
            epoch, within = divmod(self.progress.step, len(self.batches))
            if known != (self.batches, epoch):
                known, steps = (self.batches, epoch), self.batches.epoch(epoch)
            yield self.progress.step, steps[within]

    def _one(self, step: int, micro_rows: list[list[int]]) -> bool:
        """One update. False when memory ran out before it: the same rows come again in smaller micro-batches."""
        rate = learning_rate(self.train, step, self.steps)
        assert self.setup.optimizer is not None
        for group in self.setup.optimizer.param_groups:
            group["lr"] = rate
        result = attempt(self.setup, self._collate(step, micro_rows), self.limit)
        if isinstance(result, RanOut):
            self._go_smaller(step, result, max(len(members) for members in micro_rows))
            return False
        loss = float(result.loss)
        norm = None if result.grad_norm is None else float(result.grad_norm)
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not math.isfinite(value):
                rows = sorted({self.data.train[i].row + 1 for members in micro_rows for i in members})
                some = f"data rows {rows[:8]}{' ...' if len(rows) > 8 else ''}"
                raise self._diverged(f"the {what} is {value} at step {step + 1} (learning rate {rate:.3g}, {some})")
        self.progress.step = step + 1
        rows_seen = sum(len(members) for members in micro_rows)
        entry = {"step": step + 1, "loss": loss, "learning_rate": rate, "rows": rows_seen}
        if norm is not None:
            entry["grad_norm"] = norm
        self._log(entry)
        self.watcher.stepped(step + 1, loss, rows_seen)
        if self.progress.step == min(MEASURED_STEPS, self.steps):
            self._stop_meter()
        return True

    def _go_smaller(self, step: int, ran_out: RanOut, rows: int) -> None:
        """Halve the micro-batch; where weights may have changed already, go back to the last checkpoint too."""
        where = f"memory ran out at step {step + 1} ({ran_out.phase}, micro-batch of {rows}): {ran_out.error}"
        if rows == 1:
            raise TrainingError(
                f"{where}; a micro-batch cannot be smaller than one row: raise the budget, or let the planner choose "
                f"with techniques: auto; the last good checkpoint is {self.folder.checkpoint} (step {self._saved_step})"
            )
        told = [*self.progress.ran_out, where]
        if ran_out.weights_changed:
            self.progress = state.restore(self.folder.checkpoint, self.setup)
            self._cut_log()
        self.progress.ran_out = told
        self.progress.micro_batch_size = rows // 2
        self.batches = replace(self.batches, micro_batch_size=rows // 2)
        self.watcher.ran_out(f"{where}; going on from step {self.progress.step} with micro-batches of {rows // 2}")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what}; the last good checkpoint is {self.folder.checkpoint} (step {self._saved_step}); "
            "try a lower learning rate, a longer warm-up, max_grad_norm or precision: fp32"
        )

    def _check_weights(self) -> None:
        """A finite loss can still have a gradient that is not: what is saved must be good."""
        broken = [name for name, p in self.setup.trainable().items() if not bool(p.detach().isfinite().all())]
        if broken:
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise self._diverged(
                f"weights are not finite after step {self.progress.step}: {', '.join(broken[:3])}{more}"
            )

    def _collate(self, step: int, micro_rows: list[list[int]]) -> list[Batch]:
        epoch = step // len(self.batches)
        return [self.task.collate([self.data.train[i] for i in members], members, epoch) for members in micro_rows]

    def _stop_meter(self) -> None:
        if self.meter is None:
            return
        self.progress.measured, self.progress.reserved = self.meter.stop(), self.meter.reserved
        self.setup.phase = no_phase
        self.meter = None
        self.watcher.measured(self.progress.measured)

    def _evaluate(self) -> bool:
        """Validate, keep the best model, save. Returns whether to stop early."""
        self._check_weights()
        improved = True
        if self.data.valid:
            metrics = self._score()
            value, best = metrics[self.task.monitor], self.progress.best_metric
            sign = -1 if self.task.lower_is_better else 1
            improved = best is None or (math.isfinite(value) and sign * value > sign * best)
            self._log({"step": self.progress.step, "split": self.data.split, "valid": metrics})
            self.watcher.evaluated(self.progress.step, metrics, improved)
            if improved and math.isfinite(value):
                self.progress.best_metric = value
        if improved:
            self.progress.best_step = self.progress.step
            self.progress.evaluations_without_improvement = 0
            state.save_tensors(self.folder.best, self.setup)
        else:
            self.progress.evaluations_without_improvement += 1
        self._save()
        return self._out_of_patience()

    def _score(self) -> dict[str, float]:
        predictions = inference.predict(
            self.task, self.setup.model, self.data.valid, self.setup.device,
            rows=self.batches.micro_batch_size, longest=self.longest,
        )  # fmt: skip
        return inference.score(self.task, predictions, self.data.valid)

    def _out_of_patience(self) -> bool:
        patience = self.train.early_stopping
        return patience is not None and self.progress.evaluations_without_improvement >= patience

    def _save(self) -> None:
        self.progress.log_bytes = self.folder.log.stat().st_size if self.folder.log.exists() else 0
        state.save(self.folder.checkpoint, self.setup, self.progress)
        self._saved_step = self.progress.step

    def _log(self, entry: dict[str, Any]) -> None:
        with self._writing_log(), self.folder.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            scalars = {k: v for k, v in entry.items() if isinstance(v, float)}
            scalars.update({f"valid/{k}": v for k, v in entry.get("valid", {}).items()})
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, entry["step"])

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint: those steps run again."""
        if self.folder.log.exists():
            with self._writing_log(), self.folder.log.open("r+b") as log:
                log.truncate(min(self.progress.log_bytes, self.folder.log.stat().st_size))

    @contextlib.contextmanager
    def _writing_log(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.folder.log} cannot be written: {error.strerror}; go on with --resume once that is mended"
            ) from error

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._writer = SummaryWriter(str(self.folder.tensorboard), purge_step=self.progress.step + 1)
        return self._writer


class _Flag:
    def __init__(self) -> None:
        self.raised = False

    def __bool__(self) -> bool:
        return self.raised


class _ctrl_c:  # noqa: N801  (used like a function)
    """Turns the first Ctrl-C into a flag that the loop reads between steps; a second one interrupts at once."""

    def __enter__(self) -> _Flag:
        flag = _Flag()

        def handler(number: int, frame: Any) -> None:
            if flag.raised:
                raise KeyboardInterrupt
            flag.raised = True

        try:
            self._before: Any = signal.signal(signal.SIGINT, handler)
        except ValueError:  # not in the main thread: whoever runs us handles signals
            self._before = None
        return flag

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
