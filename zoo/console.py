"""What people see: tables, bars and a progress line, drawn with rich."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from zoo.training.watcher import Watcher
from zoo.units import format_bytes

if TYPE_CHECKING:  # none of it is needed to list models, and some of it takes seconds to import
    from zoo.card import DatasetCard, ModelCard
    from zoo.data.prepare import Data
    from zoo.domain import Scores
    from zoo.plans import Decision, Limits, Plan, Workload
    from zoo.resolve import Job
    from zoo.sweep import Largest

PHASES = ("forward", "backward", "optimizer")

_COLOURS = {
    "parameters": "blue", "buffers": "blue", "optimizer": "magenta", "gradients": "yellow",
    "activations": "green", "temporaries": "red", "batch": "cyan", "other": "white",
}  # fmt: skip

console = Console(highlight=False, markup=False)  # words are words: science-zoo[quantization] is no markup


def note_data_that_is_lacking(job: Job) -> None:
    """To people and machines alike, for a misspelt name is planned for, too."""
    from zoo.resolve import lacks_data

    if lacks_data(job.recipe):
        print(f"note: {job.recipe.data.path} does not exist; training will need it", file=sys.stderr)


def show_plan(job: Job, decision: Decision, *, show_all: bool = False) -> None:
    """The answer in one line, the reasons, what fills the memory, and what was not chosen."""
    chosen, limits = decision.chosen, decision.limits
    budget = limits.device_bytes
    taken = f"{_footprint(chosen)} of {format_bytes(budget)} ({limits.origin})"
    if chosen.needed_bytes <= budget and limits.host_bytes is not None and chosen.host_bytes > limits.host_bytes:
        taken = f"{format_bytes(chosen.host_bytes)} predicted of {format_bytes(limits.host_bytes)} (budget.host)"
    verdict = ("fits", "green") if decision.fits else ("does not fit", "red")
    parameters = f"{job.card.parameters / 1e6:.1f} M parameters"
    console.print(_titled(job.recipe.name, f": {job.card.title} ({parameters}), {job.recipe.task_name}"))
    console.print(Text.assemble(verdict, f": {taken}, {chosen.estimate.seconds:.3g} s a step predicted"))
    console.print(f"  {_choices(chosen)}; exactness {chosen.exactness}")
    for reason in decision.reasons:
        console.print(f"  - {reason}")
    _show_bar(chosen, max(budget, chosen.needed_bytes))
    if held := chosen.estimate.host_by_category:
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in sorted(held.items(), key=lambda i: -i[1]))
        console.print(f"  on the host: {format_bytes(chosen.host_bytes)} ({parts})")
    table = Table("phase", "predicted peak", box=None, padding=(0, 2))
    for phase in PHASES:
        table.add_row(phase, format_bytes(chosen.estimate.peak_by_phase.get(phase, 0)))
    console.print(table)
    _show_others(job, decision, show_all=show_all)


def show_sweep(job: Job, workload: Workload, decisions: Iterable[Decision]) -> None:
    """A line for every device, as soon as it is known."""
    unit = getattr(job.task, "length_unit", "tokens")
    console.print(_titled(job.recipe.name, f": {job.card.title}; inputs of {workload.tokens} {unit}"))
    console.print(f"  {'device':<24}{'needs at most':>14}{'of':>12}  {'step':>9}  plan")
    for decision in decisions:
        chosen, limits = decision.chosen, decision.limits
        free = [t.describe() for t in chosen.techniques if len(job.choices[t.key]) > 1]
        what = f"{' '.join(free)}; {chosen.micro_batch_size} x {chosen.accumulation_steps}"
        line = (
            f"  {limits.device.name:<24}{format_bytes(chosen.needed_bytes):>14}{format_bytes(limits.device_bytes):>12}"
            f"  {chosen.estimate.seconds:>7.3g} s  {what if decision.fits else 'does not fit'}"
        )
        console.print(line, style="green" if decision.fits else "red", soft_wrap=True)


def show_largest(job: Job, limits: Limits, found: Largest) -> None:
    """The longest inputs and the largest micro-batch that a device holds, and how."""
    from zoo.sweep import CLOSE

    device = f" on {limits.device.title} ({format_bytes(limits.device_bytes)}), found to one part in {CLOSE}"
    console.print(_titled(job.recipe.name, device))
    lines = [(f"largest micro-batch: {found.rows or 'none fits'}", found.widest)]
    if found.tokens is not None:
        lines.insert(0, (f"longest input: {found.tokens or 'none fits'} tokens", found.longest))
    for what, decision in lines:
        console.print(f"  {what}")
        if decision is not None:
            console.print(f"    {_footprint(decision.chosen)}; {_choices(decision.chosen)}")


def _choices(plan: Plan) -> str:
    techniques = ", ".join(f"{t.key} {t.describe()}" for t in plan.techniques)
    return f"{techniques}; micro-batch {plan.micro_batch_size} x {plan.accumulation_steps}"


def _titled(title: str, rest: str) -> Text:
    return Text.assemble((title, "bold"), rest)


def _footprint(plan: Plan) -> str:
    """What the plan takes of its device, and with the uncertainty of the prediction."""
    held = plan.footprint
    parts = [f"{format_bytes(held.allocated)} predicted"]
    if held.process != held.allocated:
        parts += [f"{format_bytes(held.reserved)} reserved", f"{format_bytes(held.process)} with the device's context"]
    return f"{', '.join(parts)}, at most {format_bytes(plan.needed_bytes)}"


def _show_bar(plan: Plan, whole: int, width: int = 60) -> None:
    bar, legend = Text("  "), Text("  ")
    used = 0
    for category, amount in sorted(plan.estimate.peak_by_category.items(), key=lambda item: -item[1]):
        cells = round(amount / whole * width)
        used += cells
        colour = _COLOURS.get(category, "white")
        bar.append("█" * cells, style=colour)
        if amount > plan.peak_bytes // 1000:
            legend.append("■ ", style=colour).append(f"{category} {format_bytes(amount)}  ")
    bar.append("░" * max(width - used, 0), style="dim")
    console.print(bar)
    console.print(legend)


def _show_others(job: Job, decision: Decision, *, show_all: bool) -> None:
    # What the recipe decides is the same in every line.
    free = [key for key, options in job.choices.items() if len(options) > 1] or list(job.choices)
    if show_all:
        table = Table("techniques", "micro-batch", "peak", "s/step", "fits", box=None, padding=(0, 2))
        for plan in sorted(decision.considered, key=lambda p: p.peak_bytes):
            names = " ".join(t.describe() for t in plan.techniques if t.key in free)
            fits = "no" if decision.limits.why_not(plan) else "yes"
            batch = f"{plan.micro_batch_size} x {plan.accumulation_steps}"
            table.add_row(names, batch, format_bytes(plan.peak_bytes), f"{plan.estimate.seconds:.3g}", fits)
        console.print(table)
        return
    if decision.rejected:
        table = Table("not chosen", "peak", "why", box=None, padding=(0, 2))
        alike = Counter(other.reason for other in decision.rejected if other.plan is None)
        for other in decision.rejected:
            if other.plan is None and (count := alike.pop(other.reason, 0)) != 1:
                if count:  # the first of many that cannot be, for one reason
                    table.add_row(f"{count} combinations", "-", other.reason)
                continue
            names = " ".join(t.describe() for t in other.techniques if t.key in free)
            peak = "-" if other.plan is None else format_bytes(other.plan.peak_bytes)
            table.add_row(names, f"over {peak}" if other.plan is not None and other.plan.ended else peak, other.reason)
        console.print(table)


FEW = 6
"""Metrics that are shown side by side."""


class TrainingView(Watcher):
    """A progress line with loss, samples per second, memory and remaining time; validation lines above it."""

    def __init__(self, job: Job, *, quiet: bool) -> None:
        self.job = job
        self.quiet = quiet
        self._rows = 0
        self._task: Any = None
        self._memory = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]:.0f} samples/s  {task.fields[memory]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
        )

    def __enter__(self) -> TrainingView:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def planned(self, decision: Decision, data: Data) -> None:
        self._memory = f"{format_bytes(decision.chosen.peak_bytes)} predicted"
        if self.quiet:
            return
        show_plan(self.job, decision)
        sizes = ", ".join(f"{len(data.part(part))} {part}" for part in ("train", "valid", "test"))
        console.print(f"data: {sizes}; split {data.split}")
        for note, count in data.notes.items():
            console.print(f"  - {count} {note}")

    def started(self, steps: int, done: int) -> None:
        self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._rows = 0
        self._task = self._progress.add_task(
            "training", total=steps, completed=done, loss="-", speed=0.0, memory=self._memory
        )

    def stepped(self, step: int, loss: float, rows: int) -> None:
        self._rows += rows
        elapsed = self._progress.tasks[-1].elapsed or 1e-9
        self._progress.update(
            self._task, completed=step, loss=f"{loss:.4f}", speed=self._rows / elapsed, memory=self._memory
        )

    def measured(self, by_phase: dict[str, int]) -> None:
        self._memory = f"{format_bytes(max(by_phase.values(), default=0))} measured"

    def evaluated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        if not self.quiet:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:FEW])
            line = Text(f"step {step:5d}  valid: {shown}")
            self._progress.console.print(line.append("  best", "green") if best else line)

    def ran_out(self, what: str) -> None:
        if not self.quiet:
            self._progress.console.print(what, style="yellow")

    def stopped(self, reason: str) -> None:
        if not self.quiet:
            self._progress.console.print(f"stopped early: {reason}")

    def compares(self, what: str) -> None:
        if not self.quiet:
            self._progress.console.print(_titled("for comparison", f": {what}"))


def show_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Metrics against the floors, and predicted beside measured memory."""
    test = summary["metrics"].get("test", {})
    floors: Mapping[str, Mapping[str, float]] = summary.get("baselines", {})
    trained = f"{summary['model']} ({summary['checkpoint']})"
    console.print(_metrics("test metrics", {trained: test, **floors}, list(test), summary["split"]))
    memory = summary["memory"]
    table = Table("memory", "predicted", "measured", "error", box=None, padding=(0, 2))
    for phase in ("peak", *PHASES):
        predicted, measured = memory["predicted_bytes"][phase], memory["measured_bytes"][phase]
        error = f"{(predicted / measured - 1) * 100:+.2f} %" if measured else "-"
        table.add_row(phase, format_bytes(predicted), format_bytes(measured), error)
    if (reserved := memory.get("reserved_bytes")) is not None:
        told, found = reserved["predicted"], reserved["measured"]
        table.add_row("reserved", format_bytes(told), format_bytes(found), f"{(told / found - 1) * 100:+.2f} %")
    console.print(table)
    for note in summary["notes"]:
        console.print(f"  - {note}")
    console.print(f"{summary['steps']} steps in {summary['seconds']:.0f} s; everything about this run is in {folder}")


def show_metrics(found: Mapping[str, Mapping[str, float]], split: str, notes: Mapping[str, int]) -> None:
    """A table of metrics, and what is to be known of the rows behind them, with how many there are."""
    names = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    console.print(_metrics("part", found, names, split))
    for note, count in notes.items():
        console.print(f"  - {note}: {count}")


def show_scores(scores: Scores) -> None:
    """Tables of scores, one below the other, and what is to be known of them."""
    for title, rows in scores.tables.items():
        console.print(Text(title, style="bold"))
        table = Table(*(Column(name, overflow="fold") for name in rows[0]), box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
        console.print()
    for note in scores.notes:
        console.print(f"  - {note}")


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def _metrics(corner: str, found: Mapping[str, Mapping[str, float]], names: Sequence[str], split: str) -> Table:
    """A row for each of what is scored, or a column where there are more metrics than fit side by side."""
    shown = {who: [_number(metrics.get(n)) for n in names] for who, metrics in found.items()}
    down = len(names) > FEW
    table = Table(
        Column(corner, overflow="fold"), *(shown if down else names), box=None, padding=(0, 2), title=f"split {split}"
    )
    table.title_justify = "left"
    rows = [(name, *values) for name, values in zip(names, zip(*shown.values(), strict=True), strict=True)]
    for row in rows if down else [(who, *values) for who, values in shown.items()]:
        table.add_row(*row)
    return table


def show_models(cards: Sequence[ModelCard]) -> None:
    table = Table("name", "domain", "parameters", "licence", "title", box=None, padding=(0, 2))
    for card in cards:
        table.add_row(card.name, card.domain, f"{card.parameters / 1e6:,.1f} M", card.licence, card.title)
    console.print(table)


def show_datasets(cards: Sequence[DatasetCard]) -> None:
    table = Table("name", "domain", "rows", "licence", "title", box=None, padding=(0, 2))
    for card in cards:
        table.add_row(card.name, card.domain, f"{card.rows:,}", card.licence, card.title)
    console.print(table)


def show_card(card: ModelCard | DatasetCard) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, value in card.model_dump(mode="json").items():
        if isinstance(value, dict):
            value = "\n".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = "\n".join(str(v) for v in value)
        table.add_row(name, str(value))
    console.print(table)
