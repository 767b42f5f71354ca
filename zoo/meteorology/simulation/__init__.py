"""A simulated dry atmosphere: a dataset of any length, with weather in it, that needs no download.

The primitive equations on a rotating sphere without orography, seasons, moisture or day, heated and braked as Held and
Suarez 1994 (Bull. Amer. Meteor. Soc. 75, 1825-1830) prescribe, integrated by the spectral dynamical core of
`dinosaur-dycore` (Kochkov et al. 2024, Nature 632, 1060-1066, the core of NeuralGCM), which the extra ``simulation``
installs. Winds, temperature and geopotential of a state obey one set of equations, jets meander and break, and errors
grow: enough to try a pipeline, to overfit, and to measure skill relative to persistence and climatology *in this
simulated world*. It says nothing about skill on Earth, and no number from it may stand beside one from ERA5.
"""

from __future__ import annotations

from zoo.meteorology.simulation.settings import VERSION, Settings
from zoo.meteorology.simulation.simulate import GENERATOR, Generator, simulate

__all__ = ["GENERATOR", "VERSION", "Generator", "Settings", "simulate"]
