"""What a step has room for: so many tokens, and so much computing, which grows with what tokens attend to."""

import math
from dataclasses import dataclass


def cost(start: int, count: int, attention_context: float) -> float:
    """Give what tokens cost that follow others, where the first of a sequence costs 1.

    Args:
        start: how many tokens come before them.
        count: how many they are.
        attention_context: attending to so many tokens costs as much as all else that is computed for one.
    """
    return count + count * (start + (count - 1) / 2) / attention_context


@dataclass
class Budget:
    """What is left of a step.

    Attributes:
        tokens: how many more may be in it.
        cost: what they may cost.
        attention_context: see `cost`.
    """

    tokens: int
    cost: float
    attention_context: float

    def affordable(self, start: int, most: int) -> int:
        """Say how many of the tokens after others may be in the step.

        While anything is left it is one, though it may cost more: so whoever comes first always advances.
        """
        most = min(most, self.tokens)
        if most < 1 or self.cost <= 0:
            return 0
        # Where n + n · (start + (n - 1) / 2) / context is the cost that is left, by the quadratic formula.
        linear = 1 + (start - 0.5) / self.attention_context
        root = math.sqrt(linear**2 + 2 * self.cost / self.attention_context)
        return min(most, max(1, int(2 * self.cost / (linear + root))))

    def spend(self, start: int, count: int) -> None:
        """Take tokens after others into the step."""
        self.tokens -= count
        self.cost -= cost(start, count, self.attention_context)

    def set_aside(self, part: int) -> "Budget":
        """Take an n-th of it away, and at least a token if there is one."""
        aside = Budget(-(-self.tokens // part), self.cost / part, self.attention_context)
        self.tokens -= aside.tokens
        self.cost -= aside.cost
        return aside

    def put_back(self, aside: "Budget") -> None:
        """Add what was taken away, whatever the rest was overspent by."""
        self.tokens += aside.tokens
        self.cost = max(self.cost, 0.0) + aside.cost
