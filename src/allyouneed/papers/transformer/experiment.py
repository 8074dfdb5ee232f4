"""Does attention alone translate better than an attention GRU at equal compute, and what is each part of it worth?

Laptop: about 30 minutes on 2 cores.
"""

import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from sacrebleu import corpus_bleu
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.data import Split, verses
from allyouneed.data.buckets import Buckets, in_order_of_length
from allyouneed.evidence import Better, Claim, Context, Equivalent, Experiment, Scale, TrialResult, curves_figure
from allyouneed.nn import LearnedPositions, PositionScheme, RecurrentEncoderDecoder, SinusoidalPositions
from allyouneed.text import BytePairTokenizer
from allyouneed.training import InverseSquareRoot, Loss, Snapshots, TrainingConfig, TrainingResult, evaluate, train

from .exhibits import leave_exhibits
from .transformer import transformer
from .translation import PADDING, encoded_pairs, shared_tokenizer, translate, translation_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Weights of the last tenth of a training, at so many steps, are averaged.
AVERAGED = 5
# Compute is counted in batches of so few tokens, a token at a time: what a token costs hardly depends on its company.
COUNTED_TOKENS, COUNTED_BATCHES = 256, 16
# More positions than a held-out verse has tokens and 50 more.
LEARNED_POSITIONS = 256
```
