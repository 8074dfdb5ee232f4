"""Where the layer norm stands in a block, the weights that the paper starts from, and its measure of the gradients."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allyouneed.nn import Block, CrossBlock, PostNorm, PreNorm
from allyouneed.training import Batch, LossFunction


def pre_norm_block(*sublayers: nn.Module, norm: Callable[[], nn.Module]) -> Block:
    """Put each norm inside its residual branch: x + F(norm(x)).

    The residual path is never normalised inside the stack, so a model of such blocks has one more norm behind the last.

    Source: Xiong et al. 2020, table 1, right.

    Args:
        sublayers: attention and feed-forward; or attention, attention to a source, and feed-forward.
        norm: makes the norm of one sublayer.

    Raises:
        ValueError: not two or three sublayers.
    """
    return _block([PreNorm(sublayer, norm()) for sublayer in sublayers])


def post_norm_block(*sublayers: nn.Module, norm: Callable[[], nn.Module]) -> Block:
    """Put each norm behind its residual sum: norm(x + F(x)); no further norm follows the last block.

    Source: Xiong et al. 2020, table 1, left; Vaswani et al. 2017, section 3.1.

    Args:
        sublayers: attention and feed-forward; or attention, attention to a source, and feed-forward.
        norm: makes the norm of one sublayer.

    Raises:
        ValueError: not two or three sublayers.
    """
    return _block([PostNorm(sublayer, norm()) for sublayer in sublayers])


def _block(wrapped: Sequence[nn.Module]) -> Block:
    if len(wrapped) not in (2, 3):
        raise ValueError(
            f"a block has two sublayers (attention, feed-forward) or three (with attention to a source between them), "
            f"not {len(wrapped)}"
        )
    return (Block if len(wrapped) == 2 else CrossBlock)(*wrapped)


def initialise_gaussian(model: nn.Module) -> None:
    """Draw linear layers from N(0, 2 / (inputs + outputs)), set biases to zero and the gains of norms to one.

    The Gaussian form of Xavier's initial weights. Embeddings get a standard deviation of 1/√width, so that times √width
    they are the standard normal vectors that the theory assumes at the input.

    Source: Xiong et al. 2020, section 3.3, "Parameter Initialization".
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def gradient_norms(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Iterable[Batch], loss: LossFunction
) -> Float[Tensor, " parameters"]:
    """Measure the expected gradient of each parameter: the Frobenius norm of its mean over the targets of all batches.

    Elements are averaged first and the norm is taken of the averages, as the paper does. Nothing is changed: not the
    parameters, nor their `grad`, nor whether the model is in training.

    Source: Xiong et al. 2020, section 3.4, "On the extended theory"; figure 3.

    Args:
        model: what `loss` is given.
        parameters: of the model, such as the second feed-forward matrix of each layer.
        batches: over which the expectation is taken.
        loss: gives the summed loss of a batch and the number of its targets.

    Raises:
        ValueError: no batches, or a parameter that the loss does not depend on.
    """
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    count = 0
    for batch in batches:
        total, targets = loss(model, batch)
        gradients = torch.autograd.grad(total, list(parameters), allow_unused=True)
        for place, (summed, gradient) in enumerate(zip(sums, gradients, strict=True)):
            if gradient is None:
                raise ValueError(
                    f"parameter {place}, of shape {tuple(parameters[place].shape)}, has no gradient: the loss does "
                    "not depend on it"
                )
            summed += gradient
        count += int(targets)
    if count == 0:
        raise ValueError("a gradient has no mean over no targets: give at least one batch that has some")
    return torch.stack([summed.norm() / count for summed in sums])
