"""Texts about scenes of the playground: captions, facts, questions, words, prompts."""
