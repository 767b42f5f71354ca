"""Model cards of meteorology: one module each, found by `zoo.domain.cards_in`."""
