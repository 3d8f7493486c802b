"""The playground's own lmms-eval tasks, for benchmarks that lmms-eval has no stock task for."""
