"""How a read will be answered: pure decisions, and the statements that carry them out."""

from toolkit.strategy.choose import Density, Plan, choose, outputs_of

__all__ = ["Density", "Plan", "choose", "outputs_of"]
