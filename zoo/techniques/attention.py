"""How attention is computed: by the fused kernels of PyTorch, or step by step with the score matrix in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.errors import InputError
from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.card import ModelCard
    from zoo.step import Setup


class FusedAttention(Technique):
    """``torch.nn.functional.scaled_dot_product_attention``, as models are built. Nothing is changed."""

    key = "attention"
    name = "sdpa"
    source = "Dao et al. 2022, arXiv 2205.14135; Rabe and Staats 2021, arXiv 2112.05682"
    stage = 20
    exactness = "bitwise"

    def automatic_for(self, card: ModelCard | None) -> bool:
        return card is None or self.name in card.attention

    def why_not(self, setup: Setup) -> str | None:
        if reason := _not_in_card(setup, self.name):
            return reason
        built = _implementation(setup)
        if built not in (None, self.name):
            return f"{setup.card.name} is built with attention {built}; its card must list that one in `attention`"
        return None

    def apply(self, setup: Setup) -> None:
        pass


class EagerAttention(Technique):
    """The plain product, softmax and product, through transformers' own switch.

    The score matrix (B, heads, L, L) exists, forward and backward. `tolerance` bounds the relative error of losses and
    of all weights together in three steps in fp32, compared with fused attention in float64.
    """

    key = "attention"
    name = "eager"
    source = "Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1"
    stage = 20
    exactness = "rounding"
    tolerance = 2**-14
    automatic = False

    def automatic_for(self, card: ModelCard | None) -> bool:
        """Where there is nothing else."""
        return card is not None and card.attention == (self.name,)

    def why_not(self, setup: Setup) -> str | None:
        if reason := _not_in_card(setup, self.name):
            return reason
        if _implementation(setup) == self.name or hasattr(setup.model, "set_attn_implementation"):
            return None
        return (
            f"{setup.card.name} has no switch between implementations of attention "
            "(transformers' set_attn_implementation); it computes as it is written: leave attention out"
        )

    def apply(self, setup: Setup) -> None:
        if _implementation(setup) == self.name:
            return
        model: Any = setup.model
        model.set_attn_implementation(self.name)
        # A model whose code does not ask for its implementation only warns, and its parts may be of other classes.
        left = {type(m).__name__ for m in model.modules() if _implementation_of(m) not in (None, self.name)}
        if left:
            raise InputError(
                f"attention: {self.name}: transformers cannot switch {', '.join(sorted(left))} of {setup.card.name}; "
                "leave attention out"
            )


def _not_in_card(setup: Setup, name: str) -> str | None:
    if name in setup.card.attention:
        return None
    return f"{setup.card.name} computes attention as {' or '.join(setup.card.attention) or 'it is written'} only"


def _implementation(setup: Setup) -> str | None:
    return _implementation_of(setup.model)


def _implementation_of(module: Any) -> str | None:
    """What a transformers model says that it runs, None for any other module."""
    found: str | None = getattr(getattr(module, "config", None), "_attn_implementation", None)
    return found


OPTIONS = (FusedAttention, EagerAttention)
