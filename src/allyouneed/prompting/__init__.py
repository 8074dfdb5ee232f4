"""Many conversations at once with any model: answers kept, parsed, counted and scored.

```python
from allyouneed.papers.readers import load_batch
from allyouneed.prompting import complete

model = load_batch("smollm2-135m-instruct")
results = complete(model, [[{"role": "user", "content": text}] for text in questions], new_tokens=64, store="answers")
```

A `BatchModel` is an engine on this machine (`load_batch`), an OpenAI-compatible server (`ServerBatch`), or any chat
model, one by one (`ChatBatch`).
"""

from .batches import complete, score
from .local import ChatBatch, LocalBatch
from .parsing import OutputFormat
from .requests import BatchModel, Completion, CompletionRequest, Prompt, ScoreRequest, Scores, Usage
from .results import Result, Results
from .server import ServerBatch, ServerError
from .store import AnswerStore
from .workers import WorkerBatch

__all__ = [
    "AnswerStore",
    "BatchModel",
    "ChatBatch",
    "Completion",
    "CompletionRequest",
    "LocalBatch",
    "OutputFormat",
    "Prompt",
    "Result",
    "Results",
    "ScoreRequest",
    "Scores",
    "ServerBatch",
    "ServerError",
    "Usage",
    "WorkerBatch",
    "complete",
    "score",
]
