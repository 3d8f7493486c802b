"""Tables, figures and reports of finished runs, next to the teacher, the baselines and the paper's printed numbers."""
