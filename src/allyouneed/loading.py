"""Load a published model into the room that reads its architecture: `allyouneed.load(name)`."""

from allyouneed.papers.readers import load_model as load
from allyouneed.papers.readers import load_opened

__all__ = ["load", "load_opened"]
