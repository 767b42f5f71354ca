"""A forecast step by step: what the model says of one state becomes the next state that it is given.

Legend of shapes: `B` batch, `S` states of history, `V` fields given (`F` forcings last), `O` fields wanted, `H` x `W`
grid points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


def roll_out(
    model: nn.Module, inputs: Mapping[str, Tensor], given: Sequence[str], wanted: Sequence[str], steps: int
) -> Iterator[Tensor]:
    """Normalised fields wanted (B O H W), float32, after each of `steps` steps.

    `inputs`: ``fields`` (B V H W) normalised, ``hours`` (B) of a step; of models with a history ``fields`` (B S V H W),
    the present state last; of those that are told it ``time`` (B), hours since 1970, ``climate`` (B steps V H W), what
    is usual after each step, normalised, and ``mean`` and ``std`` (B V), what fields are normalised by; of models that
    predict normalised differences ``scale`` and ``shift`` (B O 1 1), which make changes of normalised states of them;
    of more steps than one ``forcings`` (B steps-1 F H W) of the later states. Every field wanted is then among the
    `given`.
    """
    state, hours = inputs["fields"], inputs["hours"]
    places = [given.index(name) for name in wanted] if set(wanted) <= set(given) else None
    kind = next(model.parameters()).dtype
    for step in range(steps):
        told = {name: inputs[name] for name in ("mean", "std") if name in inputs}
        if "time" in inputs:
            told["time"] = inputs["time"] + step * hours
        if "climate" in inputs:
            told["climate"] = inputs["climate"][:, step]
        said = model(state.to(kind), hours, **told).float()
        if "scale" in inputs:
            assert places is not None
            said = _at(state, places) + said * inputs["scale"] + inputs["shift"]
        yield said
        if step + 1 < steps:
            assert places is not None
            if state.ndim == 5:
                state = torch.cat([state[:, 1:], _next(state[:, -1], said, places, None, step)[:, None]], dim=1)
            else:
                state = _next(state, said, places, inputs.get("forcings"), step)


def ways(leads: Sequence[int], rollout: int) -> dict[int, tuple[int, int]]:
    """Steps of the data ahead -> the lead and how many of it; where several ways lead there, that of the fewest."""
    return {lead * k: (lead, k) for k in range(rollout, 0, -1) for lead in leads}


def _next(state: Tensor, said: Tensor, places: Sequence[int], forcings: Tensor | None, step: int) -> Tensor:
    """The state with what was said of it, and with the forcings of the later time."""
    index = torch.tensor(places, device=state.device)[None, :, None, None].expand_as(said)
    changed = state.scatter(1, index, said)
    if forcings is None:
        return changed
    return torch.cat([changed[:, : -forcings.shape[2]], forcings[:, step]], dim=1)


def _at(state: Tensor, places: Sequence[int]) -> Tensor:
    if list(places) == list(range(state.shape[1])):
        return state
    return state[:, torch.tensor(places, device=state.device)]
