"""The plan of a run: figures from configs, tokenizers and a look at the data; no weight is read, nothing fetched."""

from switchkd_cli.engine.plan.forecast import forecast

__all__ = ["forecast"]
