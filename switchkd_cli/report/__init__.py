"""Results of finished runs as tables, beside the teacher, the baselines and the paper's printed numbers."""
