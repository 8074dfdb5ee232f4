"""Load a published model into the room that reads its architecture: `allyouneed.load(name)`; `load_chat` to talk.

`load_batch` completes many prompts in one call.
"""

from allyouneed.papers.readers import load_batch, load_chat, load_opened
from allyouneed.papers.readers import load_model as load

__all__ = ["load", "load_batch", "load_chat", "load_opened"]
