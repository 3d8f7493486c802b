"""Benchmarks: lmms-eval's stock tasks, answered by a checkpoint, a constant or a test's stand-in."""
