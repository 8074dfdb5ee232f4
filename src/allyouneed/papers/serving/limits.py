"""How much an engine does at a time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much is done at a time.

    Attributes:
        max_num_sequences: how many are generated at once.
        max_batched_tokens: of a step; what sequences that are decoded leave of it is for prompts.
        max_queue: how many requests may wait before further ones are refused.
        max_draft_tokens: the most draft tokens of a sequence in a step.

    Raises:
        ValueError: numbers out of range, or steps with no room for prompts.
    """

    max_num_sequences: int = 16
    max_batched_tokens: int = 64
    max_queue: int = 256
    max_draft_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("max_num_sequences", 1),
            ("max_batched_tokens", 1),
            ("max_queue", 1),
            ("max_draft_tokens", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: it must be at least {least}")
        decoded = self.max_num_sequences * (1 + self.max_draft_tokens)
        if self.max_batched_tokens <= decoded:
            raise ValueError(
                f"max_batched_tokens {self.max_batched_tokens} leaves no room for a prompt beside max_num_sequences "
                f"{self.max_num_sequences} with max_draft_tokens {self.max_draft_tokens}: it must be above {decoded}"
            )
