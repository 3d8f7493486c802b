"""Texts about scenes of the playground: captions, facts, questions, lists, drills, words, prompts."""
