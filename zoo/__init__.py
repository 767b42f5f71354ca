"""science-zoo: domain-specific models, fine-tuned inside a memory budget that is predicted before anything runs.

import zoo
decision = zoo.plan("recipes/chemistry/solubility.yaml", budget="2GiB")
run = zoo.train("recipes/chemistry/solubility.yaml")
zoo.predict("runs/solubility", "molecules.csv", "predicted.csv")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.resources import hide_datasets_folder

if TYPE_CHECKING:
    from zoo.api import evaluate, load, models, plan, predict, train

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "models", "plan", "predict", "train"]

hide_datasets_folder()


def __getattr__(name: str) -> Any:
    """Public functions, imported when they are used: ``import zoo`` stays instant."""
    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    from zoo import api

    return getattr(api, name)
