"""GGUF for llama.cpp, written by its gguf package: a file of the language model, and one (mmproj) of tower and projector."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from switchkd_cli.engine.export.runtimes import FROZEN, Runtime, as_llava, unlike_llava
from switchkd_cli.engine.models.blueprint import Blueprint, max_positions
from switchkd_cli.engine.models.processors import normalisation, to_be_saved
from switchkd_cli.engine.models.shape import features_of, layers_before_features, patch_grid
from switchkd_cli.package_data import read_yaml

NAMES: dict[str, Any] = read_yaml(__file__)
TEXT, VISION = "model.gguf", "mmproj.gguf"
WRONG_CLIP = "it puts CLIP's class token behind the patches, so that it sees other images (its issue 25814)"


def _tokenizer(model: Blueprint) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    return json.loads(model.inputs.tokenizer.backend_tokenizer.to_str())


def _split(model: Blueprint) -> str | None:
    """Return llama.cpp's name for how a byte-level BPE tokenizer first splits a text; None: it has none, or no such kind."""
    spec = _tokenizer(model)
    before = spec["pre_tokenizer"] or {}
    steps = {step["type"]: step for step in before.get("pretokenizers", [before] * bool(before))}
    if spec["model"]["type"] != "BPE" or "ByteLevel" not in steps or not steps.keys() <= {"Split", "ByteLevel"}:
        return None
    own = "Split" not in steps and not steps["ByteLevel"]["use_regex"]
    return None if own else NAMES["splits"].get(steps.get("Split", {}).get("pattern", {}).get("Regex", ""))


def _refuses(model: Blueprint) -> Iterator[str]:
    if problems := [*unlike_llava(model, FROZEN)]:
        yield from problems
        return
    text, features = model.config.text_config, features_of(model.config)
    is_siglip = model.config.vision_config.model_type == "siglip_vision_model"
    if not is_siglip:
        yield f"{WRONG_CLIP} (student.vision: SigLIP)"
    elif features != (grid := patch_grid(model.config)[1] ** 2):
        yield f"it reads all {grid} patches of an image, the model {features} (student.feature_select=full)"
    if _split(model) is None:
        yield "it doesn't know how this tokenizer splits a text (student.tokenizer: Qwen2's, Llama 3's or GPT-2's)"
    if model.inputs.chained_only:
        yield f"{model.inputs.chained_only}: it would attend to all positions (student.language)"
    acts = {"text": text.hidden_act, "projector": model.config.projector_hidden_act}
    acts |= {"vision": model.config.vision_config.hidden_act} if is_siglip else {}
    known = NAMES["activations"]
    if unlike := [f"{act} in place of {known[of][0]}" for of, act in acts.items() if act not in known[of]]:
        yield f"its activations are built in: {', '.join(unlike)}"
    if (kind := (text.rope_parameters or {}).get("rope_type", "default")) != "default":
        yield f"rotary positions of type {kind} are not written (student.language)"


def _stretches(model: Blueprint) -> Iterator[str]:
    apart = [abs(a - b) for a, b in zip(normalisation(model.image_processor)[0], NAMES["padding"], strict=True)]
    if max(apart) > 0.005 or not getattr(model.image_processor, "do_pad", False):
        how = "it pads images to squares with CLIP's mean colour, this model's are prepared otherwise"
        yield f"{how} (student.image_processor: one with do_pad and this mean)"


def _write(model: Blueprint, folder: Path, bits: int | None) -> None:
    import gguf

    llava: Any = as_llava(model.build("auto")).model
    kind = NAMES["file_types"][str(llava.dtype)]
    text = gguf.GGUFWriter(folder / TEXT, llava.config.text_config.model_type)
    _describe_text(text, model)
    _save(text, _text_tensors(llava), kind)
    vision = gguf.GGUFWriter(folder / VISION, "clip")
    _describe_vision(vision, model)
    _save(vision, _vision_tensors(llava), "F16" if kind == "BF16" else kind)  # its convolution takes no BF16
    if bits:
        whole = (folder / TEXT).rename(folder / "whole.gguf")
        command = ["llama-quantize", str(whole), str(folder / TEXT), NAMES["quantized"][bits]]
        subprocess.run(command, check=True, capture_output=True)
        whole.unlink()


def _describe_text(writer: Any, model: Blueprint) -> None:
    """Add the language model's sizes, the tokenizer and the chat template."""
    text, words, spec = model.config.text_config, model.inputs.tokenizer, _tokenizer(model)
    fields: dict[str, Any] = {name: getattr(text, of) for name, of in NAMES["text"].items()}
    fields |= {"context_length": max_positions(model.config), "rope_freq_base": text.rope_parameters["rope_theta"]}
    if width := getattr(text, "head_dim", None):
        fields |= dict.fromkeys(("key_length", "value_length", "rope_dimension_count"), width)
    names = {number: token for token, number in words.get_vocab().items()}
    kinds = dict.fromkeys(range(text.vocab_size), "unused") | dict.fromkeys(names, "normal")
    kinds |= {token["id"]: "control" if token["special"] else "user_defined" for token in spec["added_tokens"]}
    fields |= {"tokenizer_model": "gpt2", "tokenizer_pre": _split(model)}
    fields["token_list"] = [names.get(number, f"[PAD{number}]") for number in kinds]
    fields["token_types"] = [NAMES["token_types"][kind] for kind in kinds.values()]
    fields["token_merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    begin = words.bos_token_id
    fields["add_bos_token"] = begin is not None and words("a")["input_ids"][0] == begin
    ends = model.ends or (words.eos_token_id,)
    ids = {"bos": begin, "pad": words.pad_token_id, "eos": ends[0], "eot": ends[-1]}
    fields |= {f"{name}_token_id": number for name, number in ids.items() if number is not None}
    template = to_be_saved(model.inputs.processor, None, None).chat_template
    template = template.replace(".split('<image>')", ".split(media.marker)")
    around = files(__package__).joinpath("gguf_template.jinja").read_text(encoding="utf-8").rstrip()
    fields["chat_template"] = around.replace("TEMPLATE", template)
    _add(writer, fields)


def _describe_vision(writer: Any, model: Blueprint) -> None:
    """Add the tower's sizes up to the layer that the projector reads, and how an image is normalised."""
    vision, layers = model.config.vision_config, layers_before_features(model.config)
    mean, std = ([float(value) for value in values] for values in normalisation(model.image_processor))
    fields = {name: getattr(vision, of) for name, of in NAMES["vision"].items()}
    fields |= {"image_mean": mean, "image_std": std, "block_count": layers, "use_gelu": True}
    fields["projection_dim"] = model.config.text_config.hidden_size
    _add(writer, {"clip_has_vision_encoder": True, "clip_projector_type": "mlp"})
    _add(writer, {f"vision_{name}": value for name, value in fields.items()})
    writer.add_array("clip.vision.feature_layer", [layers])  # without it: the last but one


def _add(writer: Any, fields: dict[str, Any]) -> None:
    """Add each field by the writer's own method for it."""
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)


def _text_tensors(llava: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the language model's tensors, under the names that gguf's table knows."""
    import gguf

    text = llava.config.text_config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[text.model_type.upper()], text.num_hidden_layers)
    state = {f"model.{name}": tensor for name, tensor in llava.model.language_model.state_dict().items()}
    if llava.lm_head.weight is not llava.get_input_embeddings().weight:
        state["lm_head.weight"] = llava.lm_head.weight
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    for name, tensor in state.items():
        if text.model_type == "llama" and (count := heads.get(name.split(".")[-2])):
            # transformers rotates the halves of a head, llama.cpp's llama neighbours
            tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), tensor


def _vision_tensors(llava: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the projector's tensors, and the tower's up to the layer that it reads."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers_before_features(llava.config))
    for name, tensor in llava.model.vision_tower.state_dict().items():
        known = names.get_name(f"vision_tower.vision_model.{name}", try_suffixes=(".weight", ".bias"))
        if known is not None and not known.startswith("v.post_ln"):  # later layers have no name
            yield known, tensor
    projector = llava.model.multi_modal_projector
    for number, linear in ((0, projector.linear_1), (2, projector.linear_2)):
        yield from ((f"mm.{number}.{name}", tensor) for name, tensor in linear.state_dict().items())


def _save(writer: Any, tensors: Iterable[tuple[str, Tensor]], kind: str) -> None:
    """Write the file: matrices in this type, and in float32 vectors and what is added to activations."""
    from gguf import GGMLQuantizationType, quants

    for name, tensor in tensors:
        exact = tensor.ndim == 1 or name == "v.position_embd.weight"
        stored = GGMLQuantizationType["F32" if exact else kind]
        writer.add_tensor(name, quants.quantize(tensor.detach().float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF = Runtime(
    _refuses,
    _write,
    f'llama-mtmd-cli -m {TEXT} --mmproj {VISION} --jinja --image image.png -p "What is it?" --temp 0',
    stretches=_stretches,
    low=NAMES["quantized"],
    packages={"gguf": "pip install gguf"},
    quantizers={"llama-quantize": "brew install llama.cpp    # or build it, and put its programs on the PATH"},
)
