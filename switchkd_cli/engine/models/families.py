"""Families of transformers' own vision-language models: a seam each, and everything else in common (`seams.py`, `family.py`)."""

from dataclasses import replace

from switchkd_cli.engine.models.family import Family
from switchkd_cli.engine.models.seams import Merged, Tower

TILES = Tower(at_layer=True, connects=("multi_modal_projector", "image_newline"))
LLAVA_NEXT = Family("llava_next", TILES)
LLAVA_ONEVISION = Family("llava_onevision", replace(TILES, of_row="batch_num_images"))
INTERNVL = Family("internvl", Tower(layers="encoder.layer", stacks=True))
GEMMA3 = Family("gemma3", Tower(types="token_type_ids", stacks=True))
POOLING = Tower(connects=("embed_vision",), types="mm_token_type_ids", places="image_position_ids")
GEMMA4 = Family("gemma4", POOLING)
CONNECTED = Tower("vision_model", language="text_model", connects=("connector",))
SMOLVLM, IDEFICS3 = (Family(name, CONNECTED) for name in ("smolvlm", "idefics3"))
QWEN2_VL, QWEN2_5_VL, QWEN3_5 = (Family(name, Merged()) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_5"))
QWEN3_VL = Family("qwen3_vl", Merged(connects=("visual.merger", "visual.deepstack_merger_list")))
