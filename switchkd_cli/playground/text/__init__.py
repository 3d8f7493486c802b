"""Texts about scenes of the embedded world: facts, questions, statements, captions."""
