"""Load a published model into the room that reads its architecture: `allyouneed.load(name)`; `load_chat` to talk."""

from allyouneed.papers.readers import load_chat, load_opened
from allyouneed.papers.readers import load_model as load

__all__ = ["load", "load_chat", "load_opened"]
