"""How a read will be answered: pure decisions, and the statements that carry them out."""

from toolkit.strategy.choose import choose
from toolkit.strategy.plan import HELD, Density, Kept, Plan
from toolkit.strategy.ways import outputs_of

__all__ = ["HELD", "Density", "Kept", "Plan", "choose", "outputs_of"]
