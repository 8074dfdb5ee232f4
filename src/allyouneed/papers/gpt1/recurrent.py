"""The rival of Table 5: a language model of LSTM cells, fine-tuned in the same way."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class RecurrentLanguageModel(nn.Module):
    """Embeddings, a stack of LSTM cells, and a projection back to the embeddings' width and so to the vocabulary.

    As PyTorch initialises it, but for forget gates, which begin open, and embeddings. Dropout is on embeddings, between
    cells and behind them.

    Args:
        vocabulary: number of tokens.
        width: of embeddings, and of the vectors that are handed on.
        hidden: width of a cell's state.
        layers: cells on top of each other.
        dropout: probability of dropping a coordinate in training.
        deviation: standard deviation of the initial embeddings.

    Raises:
        ValueError: no tokens, or no layers.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        hidden: int,
        *,
        layers: int = 1,
        dropout: float = 0.0,
        deviation: float = 0.02,
    ):
        super().__init__()
        if min(vocabulary, layers) < 1:
            raise ValueError(f"vocabulary {vocabulary} and {layers} layers: there must be a token and a layer")
        self.deviation = deviation
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.cells = nn.LSTM(width, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, width)
        nn.init.normal_(self.embedding.weight, std=deviation)
        for name, bias in self.cells.named_parameters():
            if name.startswith("bias_ih"):
                # The gates stand in the order input, forget, cell, output.
                nn.init.ones_(bias.data[hidden : 2 * hidden])

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each token."""
        return F.linear(self.hidden(tokens), self.output_weight)

    def hidden(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Give each token's vector, from which the logits are read; padding on the right changes nothing before it."""
        return self.project(self.states(tokens))

    def states(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        """Give the states of the last cell behind each token, which is what fine-tuning reads."""
        return self.cells(self.dropout(self.embedding(tokens)))[0]

    def project(self, states: Float[Tensor, "*batch length hidden"]) -> Float[Tensor, "*batch length width"]:
        """Project states to the embeddings' width."""
        return self.output(self.dropout(states))

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection: the embedding table (Press & Wolf 2017), as in the transformer."""
        return self.embedding.weight
