"""Latitude-weighted loss and scores as the papers of ClimaX and Stormer define them.

Legend of shapes: `B` batch, `V` variables, `H` x `W` grid points (latitude x longitude).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.meteorology.scores import latitude_weights


def cosine_weights(latitudes_degrees: Tensor | Sequence[float]) -> Tensor:
    """Cosine of the latitude over its mean, (H) -> (H), float64; the loss of ClimaX.

    Raises `InputError` for latitudes outside of -90 to 90, for none at all, and where all of them are poles.
    """
    degrees = latitudes_degrees.tolist() if isinstance(latitudes_degrees, Tensor) else latitudes_degrees
    return torch.from_numpy(latitude_weights(degrees, "cosine"))


def weighted_mse(prediction: Tensor, truth: Tensor, latitudes_degrees: Tensor | Sequence[float]) -> Tensor:
    """Mean squared error of each variable, weighted by `cosine_weights`: twice (B V H W) -> (V).

    The units are those of the fields, squared. Raises `InputError` for shapes that differ.
    """
    return (_error(prediction, truth, latitudes_degrees)).mean(dim=(0, 2, 3))


def weighted_loss(
    prediction: Tensor,
    truth: Tensor,
    latitudes_degrees: Tensor | Sequence[float],
    variable_weights: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """`weighted_mse` averaged over the variables: twice (B V H W) -> a scalar; the loss of ClimaX.

    `variable_weights` (V) are divided by their sum first (the pressure-weighted loss of Stormer); None weighs all
    alike. Raises `InputError` for shapes that differ, and for weights that are not V numbers >= 0, not all zero.
    """
    per_variable = weighted_mse(prediction, truth, latitudes_degrees)
    if variable_weights is None:
        return per_variable.mean()
    weights = torch.as_tensor(variable_weights, dtype=per_variable.dtype, device=per_variable.device)
    if weights.shape != per_variable.shape or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise InputError(
            f"variable weights: expected {len(per_variable)} numbers >= 0, not all zero; got {weights.tolist()}"
        )
    return (per_variable * weights / weights.sum()).sum()


def weighted_rmse(prediction: Tensor, truth: Tensor, latitudes_degrees: Tensor | Sequence[float]) -> Tensor:
    """Root of the weighted mean squared error of each field, then the mean over samples: twice (B V H W) -> (V).

    As ClimaX evaluates: the root is taken before the mean over samples. Units of the fields. Raises `InputError` for
    shapes that differ.
    """
    return _error(prediction, truth, latitudes_degrees).mean(dim=(2, 3)).sqrt().mean(dim=0)


def climax_acc(
    prediction: Tensor, truth: Tensor, climatology: Tensor, latitudes_degrees: Tensor | Sequence[float]
) -> Tensor:
    """Anomaly correlation coefficient as ClimaX computes it, twice (B V H W) and (V H W) -> (V), without unit.

    As ClimaX evaluates: anomalies from the climatology are centred with their *unweighted* mean over all samples and
    points, and the sums run over all samples at once. It is therefore neither WeatherBench 2's coefficient, which is
    not centred, nor a mean of coefficients of single forecasts. Raises `InputError` for shapes that differ.
    """
    weights = _weights(prediction, truth, latitudes_degrees)
    if climatology.shape != truth.shape[1:]:
        raise InputError(
            f"climatology: shape {tuple(climatology.shape)} for fields of {tuple(truth.shape)}; "
            "expected (variables, latitude, longitude)"
        )
    forecast, observed = prediction - climatology, truth - climatology
    forecast = forecast - forecast.mean(dim=(0, 2, 3), keepdim=True)
    observed = observed - observed.mean(dim=(0, 2, 3), keepdim=True)

    def total(a: Tensor, b: Tensor) -> Tensor:
        return (weights * a * b).sum(dim=(0, 2, 3))

    return total(forecast, observed) / (total(forecast, forecast) * total(observed, observed)).sqrt()


def _error(prediction: Tensor, truth: Tensor, latitudes_degrees: Tensor | Sequence[float]) -> Tensor:
    return (prediction - truth) ** 2 * _weights(prediction, truth, latitudes_degrees)


def _weights(prediction: Tensor, truth: Tensor, latitudes_degrees: Tensor | Sequence[float]) -> Tensor:
    """`cosine_weights` as (H 1) in the type and on the device of the prediction."""
    weights = cosine_weights(latitudes_degrees)
    if prediction.ndim != 4 or prediction.shape != truth.shape or prediction.shape[2] != len(weights):
        raise InputError(
            f"scores: prediction {tuple(prediction.shape)}, truth {tuple(truth.shape)} and {len(weights)} latitudes; "
            "expected both as (batch, variables, latitude, longitude) with these latitudes"
        )
    return weights.to(prediction)[:, None]
