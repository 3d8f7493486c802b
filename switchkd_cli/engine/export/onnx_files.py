"""ONNX: the three files that transformers.js reads a LLaVA from; onnxruntime runs them anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from switchkd_cli.engine.export.runtimes import FROZEN, Runtime, unlike_llava
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.ldpnet import LlavaLdpConfig
from switchkd_cli.engine.models.model_folder import edit_json
from switchkd_cli.engine.models.shape import image_tokens_of, patch_grid

LOW = {4: "q4", 8: "quantized"}
"""The end of a low-bit file's name; transformers.js calls the second q8."""
OPSET = 21  # the first with 4-bit integers
LARGEST = 2**31 - 2**24
"""Bytes above which the weights go into a file of their own: protobuf ends at 2 GiB."""


class _Vision(nn.Module):
    """V and P: pixels [P, 3, H, W] -> visual tokens [P, M, width of L]."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.core = llava.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        config = self.core.config
        seen = self.core.vision_tower(pixel_values, output_hidden_states=True)
        features = seen.hidden_states[config.vision_feature_layer]
        return self.core.multi_modal_projector(features[:, int(config.vision_feature_select_strategy == "default") :])


class _Decoder(nn.Module):
    """L with its head: embeddings [B, T, D], each layer's keys and values -> logits [B, 1, V] of the last position, the new ones."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.language, self.head = llava.model.language_model, llava.lm_head

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> Any:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        given = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        hidden = self.language(**given, past_key_values=cache, use_cache=True).last_hidden_state
        return self.head(hidden[:, -1:]), *(each for layer in cache.layers for each in (layer.keys, layer.values))


def _write(model: Blueprint, folder: Path, bits: int | None) -> None:
    whole = model.build("float32")
    llava: Any = whole.model
    text, side = llava.config.text_config, patch_grid(llava.config)[0]
    width = llava.model.language_model.layers[0].self_attn.head_dim
    past = [torch.rand(2, text.num_key_value_heads, 3, width) for _ in range(2 * text.num_hidden_layers)]
    names = [f"{layer}.{what}" for layer in range(text.num_hidden_layers) for what in ("key", "value")]
    # transformers.js makes an empty cache by the names of these axes
    rows, cached = {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 2: "past_sequence_length"}
    seen, places = torch.ones(2, 7, dtype=torch.int64), torch.arange(3, 7).expand(2, -1)
    to_embed = {"input_ids": (torch.ones(2, 4, dtype=torch.int64), rows)}
    to_decode: dict[str, Any] = {"inputs_embeds": (torch.rand(2, 4, text.hidden_size), rows)}
    to_decode["attention_mask"] = seen, {0: "batch_size", 1: "total_sequence_length"}
    to_decode |= {"position_ids": (places, rows), "past_key_values": (past, [cached] * len(past))}
    to_see = {"pixel_values": (torch.rand(2, 3, side, side), {0: "images"})}
    (folder / "onnx").mkdir()
    for name, module, inputs, outputs in (
        ("vision_encoder", _Vision(llava), to_see, ["image_features"]),
        ("embed_tokens", llava.get_input_embeddings(), to_embed, ["inputs_embeds"]),
        ("decoder_model_merged", _Decoder(llava), to_decode, ["logits", *(f"present.{each}" for each in names)]),
    ):
        given = [f"{key}.{each}" for key in inputs for each in (names if key == "past_key_values" else [""])]
        values, axes = zip(*inputs.values(), strict=True)
        how: dict[str, Any] = {"input_names": [key.rstrip(".") for key in given], "output_names": outputs}
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            how |= {"dynamic_shapes": axes, "opset_version": OPSET, "verbose": False}
            program: Any = torch.onnx.export(module.eval(), values, dynamo=True, **how)
        _save(program.model_proto, folder / "onnx", name, bits)
    whole.save(folder, weights=False)
    (folder / "model.safetensors").unlink()
    apart = {file.name.removesuffix("_data"): True for file in (folder / "onnx").glob("*_data")}
    js = {"dtype": {None: "fp32", 4: "q4", 8: "q8"}[bits], "use_external_data_format": apart}
    # LDPNetV2 is part of vision_encoder.onnx, so that the rest is a LLaVA
    named = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "transformers.js_config": js}
    # transformers.js takes every patch for a token, and adds these; it doesn't know that "default" drops one
    more = image_tokens_of(llava.config) - (side // whole.inputs.processor.patch_size) ** 2
    counted = {"num_additional_image_tokens": more, "vision_feature_select_strategy": "full"}
    edit_json(folder / "config.json", lambda fields: fields | named)
    edit_json(folder / "processor_config.json", lambda fields: fields | counted)


def _save(model: Any, folder: Path, name: str, bits: int | None) -> None:
    """Write one file, in low bits by onnxruntime's own quantizer; above `LARGEST` bytes with its weights in another."""
    import onnx

    for node in model.graph.node:
        del node.metadata_props[:]  # lines and paths of the code that it was made of
    if bits:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        kinds = ("MatMul", "Gather") if bits == 4 else ("MatMul",)  # embeddings in 4 bits or not at all
        low = MatMulNBitsQuantizer(model, bits=bits, block_size=32, is_symmetric=True, op_types_to_quantize=kinds)
        low.process()
        model, name = low.model.model, f"{name}_{LOW[bits]}"
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST
    apart = {"save_as_external_data": True, "location": f"{name}.onnx_data"} if large else {}
    onnx.save_model(model, folder / f"{name}.onnx", **apart)


def _pads(model: Blueprint) -> Iterator[str]:
    if getattr(model.image_processor, "do_pad", False):
        yield "transformers.js doesn't pad images to squares (student.image_processor: one that stretches, as SigLIP's)"


ONNX = Runtime(
    lambda model: unlike_llava(model, FROZEN, LlavaLdpConfig.model_type),
    _write,
    'await LlavaForConditionalGeneration.from_pretrained(".")    // @huggingface/transformers',
    stretches=_pads,
    low=LOW,
    packages=dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "pip install onnx onnxscript onnxruntime"),
)
