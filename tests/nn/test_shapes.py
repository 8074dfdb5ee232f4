"""The annotated shapes are enforced while tests run, so a test that passes shows that they are true."""

import pytest
import torch
from jaxtyping import TypeCheckError

from allyouneed.nn import Attention, AttentionPattern, RotaryPositions, Rotation, fused_attention, linear_cross_entropy
from allyouneed.papers.alibi import ALiBi

WRONG = {
    "too few axes": lambda: Attention(6, 2)(torch.zeros(3, 6)),
    "batches that differ": lambda: fused_attention(
        torch.zeros(2, 1, 3, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    ),
    "keys without their values": lambda: fused_attention(
        torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 3, 4)
    ),
    "fewer targets than vectors": lambda: linear_cross_entropy(
        torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.int64)
    ),
    "another width": lambda: linear_cross_entropy(
        torch.zeros(3, 4), torch.zeros(5, 3), torch.zeros(3, dtype=torch.int64)
    ),
    "positions that are not integers": lambda: RotaryPositions(4).rotation(torch.zeros(1, 3)),
    "positions of a batch, where one row is taken": lambda: ALiBi(2).bias(
        torch.zeros(1, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    ),
    "a field of a dataclass": lambda: Rotation(torch.zeros(3, 4), torch.zeros(3, 4)),
    "a mask of integers": lambda: AttentionPattern(mask=torch.zeros(1, 1, 3, 3, dtype=torch.int64)),
    "a plain type": lambda: ALiBi("8"),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=list(WRONG))
def test_a_wrong_shape_raises(call):
    with pytest.raises(TypeCheckError):
        call()


def test_a_wrong_result_raises():
    """A kernel's result is checked where the attention returns, whoever wrote the kernel."""
    attention = Attention(6, 2, kernel=lambda query, key, value, **_: value[:, :, :1])
    with pytest.raises(TypeCheckError, match="return"):
        attention(torch.zeros(1, 3, 6))
