"""One file per model family; each lists its cards in ``CARDS``."""
