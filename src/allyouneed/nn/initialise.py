"""Initial weights."""

from torch import nn


def initialise_xavier(model: nn.Module) -> None:
    """Set linear layers to Xavier-uniform, biases to zero, embeddings to a normal of standard deviation 1/√width.

    What Vaswani et al. trained with in tensor2tensor, and most transformers of fairseq after it. Embeddings so small
    want to be multiplied by √width where positions are added to them (section 3.4 of the paper).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
