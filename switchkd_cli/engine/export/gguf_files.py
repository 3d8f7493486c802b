"""GGUF for llama.cpp, written by its gguf package: a file of the language model, and one (mmproj) of tower and projector."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from switchkd_cli.engine.export.runtimes import Runtime, unlike_llava
from switchkd_cli.engine.models.blueprint import Blueprint, max_positions
from switchkd_cli.engine.models.processors import normalisation
from switchkd_cli.engine.models.shape import features_of, layers_before_features, patch_grid
from switchkd_cli.engine.models.tokenizers import to_be_saved

TEXT, VISION = "model.gguf", "mmproj.gguf"
LOW = {4: "Q4_K_M", 8: "Q8_0"}  # llama-quantize's names
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MEAN = (0.48145466, 0.4578275, 0.40821073)
"""llama.cpp pads with this colour, CLIP's mean."""

_WORDS, _REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{_REST}": "qwen2",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    "": "gpt-2",
}
"""Regular expressions by which a byte-level BPE tokenizer first splits a text, and llama.cpp's names of them."""


def _tokenizer(model: Blueprint) -> tuple[str, str] | None:
    """Return llama.cpp's names for the kind of tokenizer and its first split of a text; None: it has none."""
    spec = json.loads(model.inputs.tokenizer.backend_tokenizer.to_str())
    before = spec["pre_tokenizer"] or {}
    steps = {step["type"]: step for step in before.get("pretokenizers", [before] * bool(before))}
    if spec["model"]["type"] != "BPE":
        return None
    if "ByteLevel" not in steps:  # Llama 2's, which adds a space before each text
        prepends = any(step["type"] == "Prepend" for step in (spec["normalizer"] or {}).get("normalizers", ()))
        always = steps.get("Metaspace", {}).get("prepend_scheme") == "always"
        return ("llama", "default") if spec["model"]["byte_fallback"] and (prepends or always) else None
    split = steps.get("Split", {}).get("pattern", {}).get("Regex", "")
    whole = steps.keys() <= {"Split", "ByteLevel"} and (split or steps["ByteLevel"]["use_regex"])
    return ("gpt2", SPLITS[split]) if whole and split in SPLITS else None


def _refuses(model: Blueprint) -> Iterator[str]:
    if problems := [*unlike_llava(model)]:
        yield from problems
        return
    text, grid = model.config.text_config, patch_grid(model.config)[1] ** 2
    if (kept := features_of(model.config)) != grid:
        other = "full" if kept < grid else "default"
        yield f"it reads the {grid} patches of an image, the model {kept} features (student.feature_select={other})"
    if _tokenizer(model) is None:
        yield "it doesn't know how this tokenizer splits a text (student.tokenizer: Qwen2's, Llama's or GPT-2's)"
    if model.inputs.chained_only:
        yield f"{model.inputs.chained_only}, it would attend to everything (student.language)"
    if (kind := (text.rope_parameters or {}).get("rope_type", "default")) != "default":
        yield f"rotary positions of type {kind} are not written (student.language)"


def _stretches(model: Blueprint) -> Iterator[str]:
    processor = model.image_processor
    mean = normalisation(processor)[0]
    if not getattr(processor, "do_pad", False):
        yield "it pads images to squares, this model's are stretched or cropped (student.image_processor: one with do_pad)"
    elif any(abs(ours - theirs) > 0.005 for ours, theirs in zip(mean, MEAN, strict=True)):
        yield "it pads with CLIP's mean colour, this model's images with their own (student.image_processor: CLIP's mean)"


def _write(model: Blueprint, folder: Path, bits: int | None) -> None:
    import gguf

    llava: Any = model.build("auto").model
    kind = TYPES[llava.dtype]
    text = gguf.GGUFWriter(folder / TEXT, model.config.text_config.model_type)
    _describe_text(text, model)
    _add(text, _text_tensors(llava, gguf), kind)
    vision = gguf.GGUFWriter(folder / VISION, "clip")
    _describe_vision(vision, model)
    _add(vision, _vision_tensors(llava, gguf), "F16" if kind == "BF16" else kind)
    if bits:
        whole = (folder / TEXT).rename(folder / "whole.gguf")
        command = ["llama-quantize", str(whole), str(folder / TEXT), LOW[bits]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        whole.unlink()


def _describe_text(writer: Any, model: Blueprint) -> None:
    """Write the language model's sizes, the tokenizer and the chat template."""
    text, words = model.config.text_config, model.inputs.tokenizer
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(max_positions(model.config))
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
    if width := getattr(text, "head_dim", None):
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_rope_dimension_count(width)
    spec = json.loads(words.backend_tokenizer.to_str())
    names = {number: token for token, number in words.get_vocab().items()}
    special = {token["id"]: "CONTROL" if token["special"] else "USER_DEFINED" for token in spec["added_tokens"]}
    kinds = {"NORMAL": 1, "UNKNOWN": 2, "CONTROL": 3, "USER_DEFINED": 4, "UNUSED": 5, "BYTE": 6}
    of_bytes = {f"<0x{byte:02X}>" for byte in range(256)} if spec["model"]["byte_fallback"] else set()
    tokens = [names.get(number, f"[PAD{number}]") for number in range(text.vocab_size)]
    usual = ["UNUSED" if n not in names else "BYTE" if names[n] in of_bytes else "NORMAL" for n in range(len(tokens))]
    name, split = _tokenizer(model) or ("", "")
    writer.add_tokenizer_model(name)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[special.get(number, kind)] for number, kind in enumerate(usual)])
    if name == "llama":  # the order of its merges
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    begins = words.bos_token_id is not None and words("a")["input_ids"][0] == words.bos_token_id
    writer.add_add_bos_token(begins)
    if begins:
        writer.add_bos_token_id(words.bos_token_id)
    end, *more = model.ends or (words.eos_token_id,)
    writer.add_eos_token_id(end)
    if more:
        writer.add_eot_token_id(more[0])
    writer.add_pad_token_id(words.pad_token_id)
    template = to_be_saved(model.inputs.processor, None, None).chat_template.replace(".split('<image>')", ".split(media.marker)")
    wrapping = files(__package__).joinpath("gguf_template.jinja").read_text(encoding="utf-8")
    writer.add_chat_template(wrapping.rstrip().replace("TEMPLATE", template))


def _describe_vision(writer: Any, model: Blueprint) -> None:
    """Write the tower's sizes up to the layer that the projector reads, and how an image is normalised."""
    vision, mean_std = model.config.vision_config, normalisation(model.image_processor)
    layers = layers_before_features(model.config)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(model.config.text_config.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_use_gelu("quick" not in vision.hidden_act)  # else quick_gelu
    writer.add_vision_image_mean([float(value) for value in mean_std[0]])
    writer.add_vision_image_std([float(value) for value in mean_std[1]])
    writer.add_array("clip.vision.feature_layer", [layers])  # without it: all but the last


def _text_tensors(llava: Any, gguf: Any) -> Iterator[tuple[str, Tensor]]:
    text = llava.config.text_config
    arch = {"qwen2": gguf.MODEL_ARCH.QWEN2, "llama": gguf.MODEL_ARCH.LLAMA}[text.model_type]
    names = gguf.get_tensor_name_map(arch, text.num_hidden_layers)
    state = {f"model.{name}": tensor for name, tensor in llava.model.language_model.state_dict().items()}
    if not llava.config.tie_word_embeddings:
        state["lm_head.weight"] = llava.lm_head.weight
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    for name, tensor in state.items():
        if text.model_type == "llama" and (count := heads.get(name.split(".")[-2])):
            # transformers rotates a head's halves, llama.cpp's llama neighbours
            tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), tensor


def _vision_tensors(llava: Any, gguf: Any) -> Iterator[tuple[str, Tensor]]:
    layers = layers_before_features(llava.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    for name, tensor in llava.model.vision_tower.state_dict().items():
        if name.startswith(("post_layernorm.", "head.")) or name.endswith("position_ids"):
            continue  # what follows the layer that the projector reads
        if (known := names.get_name(f"vision_tower.vision_model.{name}", try_suffixes=(".weight", ".bias"))) is not None:
            yield known, tensor
    for number, linear in enumerate((llava.model.multi_modal_projector.linear_1, llava.model.multi_modal_projector.linear_2)):
        yield from ((f"mm.{2 * number}.{name}", tensor) for name, tensor in linear.state_dict().items())


def _add(writer: Any, tensors: Iterator[tuple[str, Tensor]], kind: str) -> None:
    """Add tensors and write the file: matrices in this type, vectors and what is added to activations in float32."""
    from gguf import GGMLQuantizationType, quants

    for name, tensor in tensors:
        exact = tensor.ndim == 1 or name in ("v.position_embd.weight", "v.class_embd")
        of = GGMLQuantizationType["F32" if exact else kind]
        writer.add_tensor(name, quants.quantize(tensor.detach().float().numpy(), of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF = Runtime(
    _refuses,
    _write,
    f'llama-mtmd-cli -m {TEXT} --mmproj {VISION} --image image.png -p "What is it?" --temp 0\n'
    f"llama-server -m {TEXT} --mmproj {VISION}",
    stretches=_stretches,
    low=LOW,
    packages={"gguf": "pip install gguf"},
    quantizers={"llama-quantize": "brew install llama.cpp    # or build it from source, and put it on the PATH"},
)
