"""Counting bytes: the ledger that sees every allocation of a step, and what is predicted from it."""
