"""The engine: the only zone of switchkd that imports torch and transformers."""
