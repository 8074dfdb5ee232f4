"""One room for each paper; `readers` finds the room that reads a checkpoint."""
