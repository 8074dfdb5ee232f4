"""The recurrent rival of the transformer: an encoder–decoder of GRUs or LSTMs with additive attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .encoder_decoder import check_sources
from .initialise import initialise_xavier

State = Tensor | tuple[Tensor, Tensor]
"""Of one stack of cells, layers first: hidden vectors of GRUs; hidden vectors and cells of LSTMs."""

Cell = type[nn.GRU] | type[nn.LSTM]


class AdditiveAttention(nn.Module):
    """Scores v · tanh(W query + U key), a softmax over the keys, and the average of the keys that it weights.

    Source: Bahdanau et al. 2015, section 3.1 and appendix A.1.2.

    Args:
        query_width: width of what looks.
        key_width: width of what is looked at, and averaged.
        width: of the layer inside the score.
    """

    def __init__(self, query_width: int, key_width: int, width: int):
        super().__init__()
        self.query = nn.Linear(query_width, width)
        self.key = nn.Linear(key_width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(
        self,
        query: Float[Tensor, "batch queries query_width"],
        keys: Float[Tensor, "batch keys key_width"],
        projected: Float[Tensor, "batch keys width"] | None = None,
        present: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries key_width"]:
        """Let each query look at the keys.

        Args:
            query: what looks.
            keys: what is looked at.
            projected: `self.key(keys)`, where it is at hand.
            present: False where a key is padding.
        """
        return self.weights(query, keys, projected, present) @ keys

    def weights(
        self,
        query: Float[Tensor, "batch queries query_width"],
        keys: Float[Tensor, "batch keys key_width"],
        projected: Float[Tensor, "batch keys width"] | None = None,
        present: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries keys"]:
        """Give how much each query looks at each key; arguments as in `forward`."""
        mapped: Tensor = self.key(keys) if projected is None else projected
        scores = self.score((self.query(query)[:, :, None] + mapped[:, None]).tanh()).squeeze(-1)
        if present is not None:
            scores = scores.masked_fill(~present[:, None], -torch.inf)
        return scores.softmax(-1)


@dataclass
class RecurrentState:
    """The state of a decoding: the encoded sources, and what the cells hold of each target.

    Rows are target sequences. Each source has as many rows as any other, and they stand together.

    Attributes:
        source: the encoded sources.
        projected: as attention looks at them.
        present: False where a source token is padding; None where none is.
        lower: the first layer's state.
        upper: that of the layers above the attention; None where there are none.
    """

    source: Float[Tensor, "sources keys key_width"]
    projected: Float[Tensor, "sources keys width"]
    present: Bool[Tensor, "sources keys"] | None
    lower: State
    upper: State | None

    def select(self, rows: Int[Tensor, " rows"], sources: Int[Tensor, " kept"] | None = None) -> None:
        """Let each row continue the old row that it names, and keep these sources; all where None."""
        self.lower = _each(self.lower, lambda part: part.index_select(1, rows))
        if self.upper is not None:
            self.upper = _each(self.upper, lambda part: part.index_select(1, rows))
        if sources is not None:
            self.source, self.projected = self.source.index_select(0, sources), self.projected.index_select(0, sources)
            self.present = None if self.present is None else self.present.index_select(0, sources)


class RecurrentEncoderDecoder(nn.Module):
    """A bidirectional encoder, and a decoder that looks at it after its first layer.

    The decoder's first layer reads the target so far; its outputs look at the source by additive attention; the layers
    above read both, and the last output, what was looked at and the last target token together give the next one. So
    does the decoder of Wu et al. 2016 (section 3), which has the first layer's output as the query and the context as
    an input of the layers above. Bahdanau et al. 2015 feed the context back into a single layer, which computes one
    token at a time; here a layer reads a whole target at once, and training is several times as fast.

    Dropout is on embeddings, between layers, and before the output projection. Recurrent weights start orthogonal, and
    an LSTM's forget gates open.

    Args:
        source_vocabulary: number of source tokens.
        target_vocabulary: number of target tokens.
        width: of embeddings, and of the vector before the output projection.
        hidden: width of a cell's state; each of the encoder's two directions has as much. The width where None.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        cell: `nn.GRU` or `nn.LSTM`.
        tied: whether the output projection is the target's embedding table (Press & Wolf 2017).
        shared: whether source and target have one embedding table.
        embedding_scale: what embeddings are multiplied by.
        dropout: probability of dropping a coordinate in training.

    Raises:
        ValueError: `shared` with vocabularies that differ, or no layers.
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        width: int,
        *,
        hidden: int | None = None,
        encoder_layers: int = 1,
        decoder_layers: int = 2,
        cell: Cell = nn.GRU,
        tied: bool = True,
        shared: bool = False,
        embedding_scale: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if min(encoder_layers, decoder_layers) < 1:
            raise ValueError(f"{encoder_layers} encoder and {decoder_layers} decoder layers: each needs at least one")
        if shared and source_vocabulary != target_vocabulary:
            raise ValueError(
                f"a vocabulary of {source_vocabulary} source tokens and one of {target_vocabulary} target tokens "
                "cannot share an embedding: they must be one vocabulary over both languages"
            )
        hidden = width if hidden is None else hidden
        self.source_embedding = nn.Embedding(source_vocabulary, width)
        self.embedding = self.source_embedding if shared else nn.Embedding(target_vocabulary, width)
        self.embedding_scale = embedding_scale
        self.dropout = nn.Dropout(dropout)
        between = dropout if encoder_layers > 1 else 0.0
        self.encoder = cell(width, hidden, encoder_layers, batch_first=True, dropout=between, bidirectional=True)
        # From the encoder's last states to the decoder's first: hidden vectors, and cells where there are any.
        self.parts = 2 if cell is nn.LSTM else 1
        self.decoder_layers = decoder_layers
        self.bridge = nn.Linear(2 * hidden, self.parts * decoder_layers * hidden)
        self.lower = cell(width, hidden, batch_first=True)
        self.attention = AdditiveAttention(hidden, 2 * hidden, hidden)
        above = decoder_layers - 1
        between = dropout if above > 1 else 0.0
        self.upper = cell(3 * hidden, hidden, above, batch_first=True, dropout=between) if above else None
        self.readout = nn.Linear(3 * hidden + width, width)
        self.head = None if tied else nn.Linear(width, target_vocabulary, bias=False)
        initialise_xavier(self)
        for stack in (self.encoder, self.lower, self.upper):
            if stack is not None:
                _initialise(stack)

    def forward(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each target token; arguments as in `hidden`."""
        return F.linear(self.hidden(source, target, present=present), self.output_weight)

    def hidden(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Give the vector before the output projection at each target token.

        Args:
            source: what is to be translated.
            target: what it becomes, from the token that begins every target. Padding, on the right, needs no mark.
            present: False where a source token is padding, on the right; all tokens are present where None.

        Raises:
            ValueError: a source or a target without tokens, or padding that is not on the right.
        """
        if target.shape[1] == 0:
            raise ValueError("the targets are empty: each needs the token that begins it")
        return self._decode(target, self.start(source, present=present))

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection, from a target token's vector to logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def start(
        self,
        source: Int[Tensor, "batch source_length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
        limit: int | None = None,
    ) -> RecurrentState:
        """Encode sources and give the state from which `next_logits` goes on, a row for each source.

        Args:
            source: what is to be translated.
            present: False where a source token is padding, on the right.
            limit: the most target tokens that will follow. A recurrent state takes no more room for more of them.

        Raises:
            ValueError: as `hidden`.
        """
        check_sources(source, present)
        batch, longest = source.shape
        lengths = torch.full((batch,), longest) if present is None else present.sum(1).cpu()
        if present is not None and not bool((present == (torch.arange(longest) < lengths[:, None]).to(present)).all()):
            raise ValueError("a recurrent encoder reads to a source's end: padding must be on the right")
        embedded = self.dropout(self.source_embedding(source) * self.embedding_scale)
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        outputs, last = self.encoder(packed)
        encoded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=longest)
        ends = (last[0] if isinstance(last, tuple) else last)[-2:]
        first = self.bridge(ends.transpose(0, 1).flatten(1)).unflatten(1, (self.parts, self.decoder_layers, -1))
        # Hidden vectors of a cell are between -1 and 1, its memory is not.
        hidden, *memory = first.movedim(0, 2).unbind(0)
        hidden = hidden.tanh()

        def states(layers: slice) -> State:
            here = hidden[layers].contiguous()
            return (here, memory[0][layers].contiguous()) if memory else here

        return RecurrentState(
            source=encoded,
            projected=self.attention.key(encoded),
            present=present,
            lower=states(slice(1)),
            upper=None if self.upper is None else states(slice(1, None)),
        )

    def next_logits(self, tokens: Int[Tensor, " rows"], state: RecurrentState) -> Float[Tensor, "rows vocabulary"]:
        """Take in a target token of each row, and give the logits of the one that follows it."""
        return F.linear(self._decode(tokens[:, None], state)[:, 0], self.output_weight)

    def _decode(self, target: Int[Tensor, "rows length"], state: RecurrentState) -> Float[Tensor, "rows length width"]:
        """Read target tokens, and leave the state behind them in `state`."""
        embedded = self.dropout(self.embedding(target) * self.embedding_scale)
        output, state.lower = self.lower(embedded, state.lower)
        # The rows of one source look at it together, as if they were one longer sequence.
        together = output.reshape(len(state.source), -1, output.shape[-1])
        context = self.attention(together, state.source, state.projected, state.present)
        context = context.reshape(*output.shape[:2], -1)
        if self.upper is not None:
            output, state.upper = self.upper(self.dropout(torch.cat((output, context), -1)), state.upper)
        return self.dropout(self.readout(torch.cat((output, context, embedded), -1)).tanh())


def _each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)  # pyright: ignore[reportReturnType]


def _initialise(stack: nn.GRU | nn.LSTM) -> None:
    """Set input weights to Xavier-uniform, recurrent ones to orthogonal, biases to 0, an LSTM's forget gates to 1."""
    for name, parameter in stack.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
            if isinstance(stack, nn.LSTM) and name.startswith("bias_ih"):
                # The gates stand in the order input, forget, cell, output.
                nn.init.ones_(parameter.data[stack.hidden_size : 2 * stack.hidden_size])
            continue
        start = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
        for gate in parameter.data.split(stack.hidden_size):
            start(gate)
