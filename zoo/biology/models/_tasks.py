"""What every residue model here can be asked: one list, so that no card falls behind."""

TASKS = ("sequence_classification", "sequence_regression", "token_classification", "masked_language_modelling")
