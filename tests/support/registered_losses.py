"""Every registered loss as an attribute: ``losses.forward_kl``."""

from types import SimpleNamespace

from switchkd_cli import registry

losses = SimpleNamespace(**{name: registry.resolve("loss", name) for name in registry.LOSSES})
