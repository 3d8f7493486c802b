"""A finished student as a Hugging Face folder: weights, chat template, model card."""
