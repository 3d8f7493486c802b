"""How well a caption agrees with reference captions: BLEU-4, one of COCO's caption metrics, of the single sentence."""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU

_BLEU = BLEU(effective_order=True)  # sacrebleu's advice for single sentences


def caption_bleu(caption: str, references: Sequence[str]) -> float:
    """Return BLEU-4 from 0 to 1; 1 is one of the references word by word."""
    return min(_BLEU.sentence_score(caption, list(references)).score / 100, 1.0)  # rounding may exceed it


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"caption_bleu": caption_bleu(results[0], doc["answers"])}
