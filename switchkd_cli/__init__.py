"""switchkd: distil a large vision-language model into a small one with Switch-KD (arXiv 2604.14629).

The package has two zones. Everything here is light (recipes, plans, run folders, the command line) except
`switchkd_cli.engine`, the only zone that imports torch and transformers.
"""

__version__ = "0.1.0"
