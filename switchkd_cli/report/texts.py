"""The longer sentences of tables, figures and reports, kept in texts.yaml."""

from typing import Any

from switchkd_cli.package_data import read_yaml

TEXTS: dict[str, Any] = read_yaml(__file__)
NOTES: dict[str, str] = TEXTS["note"]
CAPTIONS: dict[str, str] = TEXTS["caption"]
MDE = NOTES["mde"]
