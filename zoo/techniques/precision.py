"""Number formats of parameters and activations.

No autocast: its lists of operations differ per device and it hides a cache of cast weights, so neither what is
computed nor what is allocated could be read off the recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.step import Setup


class FP32(Technique):
    """Everything in 32-bit floating point."""

    key = "precision"
    name = "fp32"
    source = "IEEE 754 binary32"
    stage = 40
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        setup.model.float()


class BF16(Technique):
    """Parameters and activations in bfloat16; the optimizer keeps fp32 master weights and states.

    The layout of Megatron and DeepSpeed. Modules that the card lists as `fp32_modules` stay in fp32. `tolerance`, four
    times the unit roundoff, bounds the relative error of the losses and of all weights together in three steps at the
    default learning rate; single gradients are rounded more coarsely.
    """

    key = "precision"
    name = "bf16"
    source = "Micikevicius et al. 2018, arXiv 1710.03740 (master weights); Kalamkar et al. 2019, arXiv 1905.12322"
    stage = 40
    exactness = "rounding"
    arithmetic = frozenset({"bf16"})
    tolerance = 2**-6

    def apply(self, setup: Setup) -> None:
        setup.model.to(torch.bfloat16)
        for module in setup.matching(setup.card.fp32_modules).values():
            module.float()
        setup.master_weights = True


class BF16Pure(Technique):
    """Parameters, gradients and optimizer states in bfloat16, without master weights: 8 bytes a parameter.

    Updates are computed in fp32 for one parameter at a time, and what is stored is rounded up or down at random so that
    it is right in expectation: updates below the resolution of bfloat16 count. Modules that the card lists as
    `fp32_modules` stay in fp32.
    """

    key = "precision"
    name = "bf16-pure"
    source = "Gupta et al. 2015, arXiv 1502.02551 (stochastic rounding); Zamirai et al. 2020, arXiv 2010.06192"
    stage = 40
    exactness = "changes-model"
    arithmetic = frozenset({"bf16"})
    automatic = False
    departure = 2

    def apply(self, setup: Setup) -> None:
        BF16().apply(setup)
        setup.master_weights = False
        setup.stochastic_rounding = True


OPTIONS = (FP32, BF16, BF16Pure)
