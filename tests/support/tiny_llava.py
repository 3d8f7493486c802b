"""A LLaVA checkpoint of 0.2 M random parameters that speaks the playground's tokenizer."""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from switchkd_cli.recipe.named_files import ASSETS


def save_tiny_llava(folder: Path) -> Path:
    """Saves it as a Hugging Face folder, processor included."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tokenizer")
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=72,
            patch_size=12,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=128,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,  # large enough for answers that depend on the picture
        ),
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        image_token_index=image,
        image_seq_length=36,
    )
    model = LlavaForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=1.0)
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=SiglipImageProcessor(
            size={"height": 72, "width": 72}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        patch_size=12,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    return folder
