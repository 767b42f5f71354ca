"""A technique of somebody else's: whether modules of role ``embedding`` are trained."""

from zoo.techniques import Technique


class Nothing(Technique):
    key, name, source, stage, exactness = "freezing", "nothing", "-", 130, "bitwise"

    def apply(self, setup):
        pass


class Embedding(Technique):
    key, name, source, stage, exactness = "freezing", "embedding", "-", 130, "changes-model"

    def why_not(self, setup):
        return None if "embedding" in setup.card.roles else f"{setup.card.name} has no role embedding"

    def apply(self, setup):
        for module in setup.modules_of("embedding").values():
            module.requires_grad_(False)


OPTIONS = (Nothing, Embedding)
