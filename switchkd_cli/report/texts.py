"""The longer sentences of tables, figures and reports, kept in texts.yaml."""

from pathlib import Path
from typing import Any

import yaml

SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same data, ten times as fast
TEXTS: dict[str, Any] = yaml.load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"), Loader=SAFE)
NOTES: dict[str, str] = TEXTS["note"]
CAPTIONS: dict[str, str] = TEXTS["caption"]
MDE = NOTES["mde"]
