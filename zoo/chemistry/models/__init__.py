"""Model cards of chemistry: one module each, found by `zoo.domain.cards_in`."""
