"""Run folders: their files, their checkpoints, who may write into them, and when a run resumes."""
