"""What every residue model here can be asked: one list, so that no card falls behind."""

TASKS = ("sequence_classification", "regression", "token_classification", "masked_language_modelling")
