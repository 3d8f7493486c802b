"""Evaluation with lmms-eval's stock tasks: scores of a checkpoint and of the majority baseline."""
