"""Texts about scenes of the playground: captions, facts, questions, statements, lessons, prompts."""
