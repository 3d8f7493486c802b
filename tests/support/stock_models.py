"""Tiny models of transformers' own families, saved by transformers' own classes with each family's own processor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from switchkd_cli.engine.models.processors import _Unread

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}{{ p.text | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
UTTERANCES = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def words(*special: str, end: str = "<|im_end|>", **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with two merges (of line breaks, and of a space with a letter) and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ĊĊ", "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    known = [token for token in ("<|im_start|>", *special) if token not in named.values()]
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token=end, extra_special_tokens=named or None
    )
    made.add_tokens([transformers.AddedToken(token, special=True) for token in known], special_tokens=True)
    return made


def qwen_words() -> PreTrainedTokenizerFast:
    return words("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "internvl": lambda: words(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    ),
    "gemma3": lambda: words(
        "<bos>",
        "<start_of_turn>",
        end="<end_of_turn>",
        bos_token="<bos>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    ),
    "gemma4": lambda: words(
        *("<bos>", "<start_of_turn>", "<|video|>"),
        end="<end_of_turn>",
        bos_token="<bos>",
        image_token="<|image|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), qwen_words),
    **dict.fromkeys(
        ("smolvlm", "idefics3"),
        lambda: words(
            *("<image>", "<fake_token_around_image>", "<global-img>", "<video>"),
            *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
            end="<end_of_utterance>",
        ),
    ),
    **dict.fromkeys(("llava_onevision", "llava_next"), lambda: words("<image>", "<video>")),
}
IMAGE_TEXT = {
    "internvl": "<IMG_CONTEXT>\n",
    "gemma3": "<start_of_image>",
    "gemma4": "<|image|>",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), "<|vision_start|><|image_pad|><|vision_end|>"),
}
TEMPLATES = {"gemma3": TURNS, "gemma4": TURNS, "smolvlm": UTTERANCES, "idefics3": UTTERANCES}

SQUARE, PINPOINTS = {"height": 28, "width": 28}, [[28, 56], [56, 28], [56, 56]]
QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
IDEFICS = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}, {"image_seq_len": 4}
PREPARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "internvl": ({"size": {"height": 32, "width": 32}, "min_patches": 1, "max_patches": 4}, {"image_seq_length": 4}),
    "gemma4": ({"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}, {}),
    "gemma3": ({"size": {"height": 32, "width": 32}}, {"image_seq_length": 4}),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), (QWEN, {})),
    **dict.fromkeys(("smolvlm", "idefics3"), IDEFICS),
    "llava_onevision": (
        {"size": SQUARE, "image_grid_pinpoints": [*PINPOINTS, [84, 84]]},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_4"},
    ),
    "llava_next": (
        {"size": {"shortest_edge": 28}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS},
        {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
}


def processor(family: str) -> Any:
    """The family's own processor, its part for videos left out as ours leaves it out."""
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    tokenizer, (of_images, of_text) = TOKENIZERS[family](), PREPARED[family]
    kind = getattr(transformers, PROCESSOR_MAPPING_NAMES[family])
    image_processor = getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[family]["pil"])(**of_images)
    made = kind.__new__(kind)
    made.check_argument_for_proper_class = lambda part, value: None
    parts = {part: _Unread(fps=2) for part in kind.get_attributes() if part.startswith(("video", "feature"))}
    kind.__init__(made, image_processor=image_processor, tokenizer=tokenizer, **parts, **of_text)
    del made.check_argument_for_proper_class
    made.chat_template = TEMPLATES.get(family, CHATML).replace("IMAGE", IMAGE_TEXT.get(family, "<image>\n"))
    return made


def _vision(kind: str, layers: int, size: int, patch: int) -> dict[str, Any]:
    more = {"siglip_vision_model": {"vision_use_head": False}, "clip_vision_model": {"projection_dim": 16}}.get(
        kind, {}
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    named = {"model_type": kind} if kind else {}
    return {**named, **sizes, "image_size": size, "patch_size": patch, **more}


def config(family: str, width: int, layers: int, tokenizer: PreTrainedTokenizerFast, **vision_changes: Any) -> Any:
    """A family's config. `width` and `layers`: the language model's."""
    id_of = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer) + 8,  # heads are padded
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    qwen_tokens = {
        "image_token_id": id_of("<|image_pad|>"),
        "video_token_id": id_of("<|video_pad|>"),
        "vision_start_token_id": id_of("<|vision_start|>"),
        "vision_end_token_id": id_of("<|vision_end|>"),
    }
    blocks = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    later = {**blocks, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": width}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    by_width = {**rope, "mrope_section": [width // 8 - 2, 1, 1]}
    interleaved = {**rope, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    image = id_of("<image>")
    fields: dict[str, Any] = {
        "internvl": lambda: {
            "vision_config": _vision("", 3, 32, 8) | {"image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": {"model_type": "qwen3", **text, "head_dim": 8},
            "image_token_id": id_of("<IMG_CONTEXT>"),
            "image_seq_length": 4,
        },
        "qwen2_vl": lambda: {
            "vision_config": {**blocks, "embed_dim": 32, "hidden_size": width, "mlp_ratio": 2},
            "text_config": {"model_type": "qwen2_vl_text", **text, "rope_parameters": by_width},
            **qwen_tokens,
        },
        "qwen2_5_vl": lambda: {
            "vision_config": {**later, "window_size": 16, "fullatt_block_indexes": [1]},
            "text_config": {"model_type": "qwen2_5_vl_text", **text, "rope_parameters": by_width},
            **qwen_tokens,
        },
        "qwen3_vl": lambda: {
            "vision_config": {**later, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
            "text_config": {"model_type": "qwen3_vl_text", **text, "head_dim": 8, "rope_parameters": interleaved},
            **qwen_tokens,
        },
        "qwen3_5": lambda: {
            "vision_config": {**later, "num_position_embeddings": 64},
            "text_config": {
                "model_type": "qwen3_5_text",
                **text,
                "head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "layer_types": ["linear_attention"] * (layers - 1) + ["full_attention"],
                "rope_parameters": {**interleaved, "partial_rotary_factor": 1.0},
            },
            **qwen_tokens,
        },
        **dict.fromkeys(
            ("smolvlm", "idefics3"),
            lambda: {
                "vision_config": _vision("", 3, 32, 8),
                "text_config": {"model_type": "llama", **text},
                "image_token_id": image,
                "scale_factor": 2,
            },
        ),
        "llava_onevision": lambda: {
            "vision_config": _vision("siglip_vision_model", 3, 28, 7),
            "text_config": {"model_type": "qwen2", **text},
            "image_token_index": image,
            "video_token_index": id_of("<video>"),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_4",
            "image_grid_pinpoints": [*PINPOINTS, [84, 84]],
        },
        "llava_next": lambda: {
            "vision_config": _vision("clip_vision_model", 3, 28, 7),
            "text_config": {"model_type": "llama", **text},
            "image_token_index": image,
            "vision_feature_layer": -2,
            "image_grid_pinpoints": PINPOINTS,
            "vision_feature_select_strategy": "default",
        },
        "gemma4": lambda: {
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 8,
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
                "default_output_length": 70,
            },
            "text_config": {
                "model_type": "gemma4_text",
                **text,
                "head_dim": 8,
                "global_head_dim": 8,
                "sliding_window": 6,
                "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"],
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": len(tokenizer) + 8,
                "num_kv_shared_layers": 0,
                "use_bidirectional_attention": "vision",
                "final_logit_softcapping": 5.0,
            },
            "audio_config": None,
            "image_token_id": id_of("<|image|>"),
            "video_token_id": id_of("<|video|>"),
            "boi_token_id": id_of("<|image>"),
            "eoi_token_id": id_of("<image|>"),
            "audio_token_id": id_of("<|audio|>"),
        },
        "gemma3": lambda: {
            "vision_config": _vision("siglip_vision_model", 3, 32, 8),
            "text_config": {
                "model_type": "gemma3_text",
                **text,
                "head_dim": 8,
                "sliding_window": 6,
                "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"],
            },
            "image_token_index": id_of("<image_soft_token>"),
            "boi_token_index": id_of("<start_of_image>"),
            "eoi_token_index": id_of("<end_of_image>"),
            "mm_tokens_per_image": 4,
        },
    }[family]()
    fields["vision_config"] |= vision_changes
    return AutoConfig.for_model(family, **fields, tie_word_embeddings=False)


def save(family: str, folder: Path, *, width: int = 32, layers: int = 2, seed: int = 1, **vision_changes: Any) -> Path:
    """Write a model of a family, no two of whose parameters are alike, by transformers' own classes alone."""
    made = processor(family)
    model = AutoModelForImageTextToText.from_config(config(family, width, layers, made.tokenizer, **vision_changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if norm else 0.15 * noise)
    model.generation_config = GenerationConfig(
        eos_token_id=made.tokenizer.eos_token_id, pad_token_id=made.tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    made.image_processor.save_pretrained(folder)
    return folder
