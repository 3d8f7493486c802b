"""TinyLLaVA checkpoints in their own format, sizes cut, and their forward pass, written from the format alone.

Nothing of the package is used here: the weights are plain tensors under TinyLLaVA's names, and the forward pass is
plain torch over these names. (TinyLLaVA Factory writes with transformers 4.39-4.40; its config.json leaves out of
`text_config` and `vision_config` what equals the class's default.)
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

WORDS = sorted(ByteLevel.alphabet())
MERGES = [("Ġ", "a"), ("Ġ", "d"), ("o", "w")]
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
LAYERS, WIDTH, HEADS, KEYS = 2, 32, 4, 2
SEEN_LAYERS, SEEN_WIDTH, SEEN_HEADS, SIDE, PATCH = 3, 24, 2, 42, 14
VOCABULARY = 280  # padded: the tokenizer has fewer
IMAGE = -200
EPS, SEEN_EPS, THETA = 1e-6, 1e-6, 1000000.0


def words() -> dict[str, int]:
    pieces = [*WORDS, *("".join(pair) for pair in MERGES)]
    return {piece: i for i, piece in enumerate(pieces)}


def config(tower: str, *, tied: bool = True, vocabulary: int = VOCABULARY, **changes) -> dict:
    """config.json with every key that a published checkpoint has."""
    first = len(words())
    text = {
        "_name_or_path": "Qwen/Qwen2.5-3B",
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": first,
        "eos_token_id": first,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
        "max_window_layers": 36,
        "model_type": "qwen2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEYS,
        "rope_theta": THETA,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }
    vision = {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": SEEN_WIDTH,
        "image_size": SIDE,
        "intermediate_size": 40,
        "layer_norm_eps": SEEN_EPS,
        "model_name_or_path": tower,
        "model_name_or_path2": "",
        "model_type": "siglip_vision_model",
        "num_attention_heads": SEEN_HEADS,
        "num_hidden_layers": SEEN_LAYERS,
        "patch_size": PATCH,
    }
    return {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "cache_dir": None,
        "connector_type": "mlp2x_gelu",
        "hidden_size": WIDTH,
        "ignore_index": -100,
        "image_aspect_ratio": "square",
        "image_token_index": IMAGE,
        "llm_model_name_or_path": "Qwen/Qwen2.5-3B",
        "model_type": "tinyllava",
        "num_queries": 128,
        "num_resampler_layers": 3,
        "pad_token": PAD,
        "pad_token_id": first,
        "resampler_hidden_size": 768,
        "text_config": text,
        "tokenizer_model_max_length": 2048,
        "tokenizer_name_or_path": "Qwen/Qwen2.5-3B",
        "tokenizer_padding_side": "right",
        "tokenizer_use_fast": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.39.3",
        "tune_type_connector": "full",
        "tune_type_llm": "full",
        "tune_type_vision_tower": "frozen",
        "tune_vision_tower_from_layer": 0,
        "use_cache": True,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "vision_hidden_size": SEEN_WIDTH,
        "vision_model_name_or_path": tower,
        "vision_model_name_or_path2": "",
        "vocab_size": vocabulary,
    } | changes


def state(seed: int = 0, *, tied: bool = True, vocabulary: int = VOCABULARY) -> dict[str, Tensor]:
    """Every tensor of a fine-tuned checkpoint under its name; the head is saved even where it is tied."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def near_one(size: int) -> Tensor:
        return 1 + drawn(size, scale=0.1)

    held = {"language_model.model.embed_tokens.weight": drawn(vocabulary, WIDTH)}
    keys = WIDTH // HEADS * KEYS
    for i in range(LAYERS):
        at = f"language_model.model.layers.{i}."
        for name, out in (("q_proj", WIDTH), ("k_proj", keys), ("v_proj", keys)):
            held[f"{at}self_attn.{name}.weight"] = drawn(out, WIDTH)
            held[f"{at}self_attn.{name}.bias"] = drawn(out)
        held[f"{at}self_attn.o_proj.weight"] = drawn(WIDTH, WIDTH)
        held[f"{at}mlp.gate_proj.weight"] = drawn(48, WIDTH)
        held[f"{at}mlp.up_proj.weight"] = drawn(48, WIDTH)
        held[f"{at}mlp.down_proj.weight"] = drawn(WIDTH, 48)
        held[f"{at}input_layernorm.weight"] = near_one(WIDTH)
        held[f"{at}post_attention_layernorm.weight"] = near_one(WIDTH)
    held["language_model.model.norm.weight"] = near_one(WIDTH)
    embeddings = held["language_model.model.embed_tokens.weight"]
    held["language_model.lm_head.weight"] = embeddings.clone() if tied else drawn(vocabulary, WIDTH)
    tower = "vision_tower._vision_tower.vision_model."
    held[f"{tower}embeddings.patch_embedding.weight"] = drawn(SEEN_WIDTH, 3, PATCH, PATCH, scale=0.05)
    held[f"{tower}embeddings.patch_embedding.bias"] = drawn(SEEN_WIDTH)
    held[f"{tower}embeddings.position_embedding.weight"] = drawn((SIDE // PATCH) ** 2, SEEN_WIDTH)
    for i in range(SEEN_LAYERS):
        at = f"{tower}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            held[f"{at}self_attn.{name}.weight"] = drawn(SEEN_WIDTH, SEEN_WIDTH)
            held[f"{at}self_attn.{name}.bias"] = drawn(SEEN_WIDTH)
        held |= linear(f"{at}mlp.fc1", drawn, 40, SEEN_WIDTH) | linear(f"{at}mlp.fc2", drawn, SEEN_WIDTH, 40)
        for name in ("layer_norm1", "layer_norm2"):
            held[f"{at}{name}.weight"], held[f"{at}{name}.bias"] = near_one(SEEN_WIDTH), drawn(SEEN_WIDTH)
    held[f"{tower}post_layernorm.weight"] = near_one(SEEN_WIDTH)
    held[f"{tower}post_layernorm.bias"] = drawn(SEEN_WIDTH)
    held |= pooling_head(f"{tower}head.", drawn, near_one)
    held |= linear("connector._connector.0", drawn, WIDTH, SEEN_WIDTH)
    return held | linear("connector._connector.2", drawn, WIDTH, WIDTH)


def linear(name: str, drawn, out: int, into: int) -> dict[str, Tensor]:
    return {f"{name}.weight": drawn(out, into), f"{name}.bias": drawn(out)}


def pooling_head(at: str, drawn, near_one) -> dict[str, Tensor]:
    """SigLIP's attention pooling, which is saved and never used."""
    return {
        f"{at}probe": drawn(1, 1, SEEN_WIDTH),
        f"{at}attention.in_proj_weight": drawn(3 * SEEN_WIDTH, SEEN_WIDTH),
        f"{at}attention.in_proj_bias": drawn(3 * SEEN_WIDTH),
        **linear(f"{at}attention.out_proj", drawn, SEEN_WIDTH, SEEN_WIDTH),
        f"{at}layernorm.weight": near_one(SEEN_WIDTH),
        f"{at}layernorm.bias": drawn(SEEN_WIDTH),
        **linear(f"{at}mlp.fc1", drawn, 40, SEEN_WIDTH),
        **linear(f"{at}mlp.fc2", drawn, SEEN_WIDTH, 40),
    }


def write_words(folder: Path) -> None:
    """The slow Qwen2 tokenizer's files."""
    first = len(words())
    special = {token: first + i for i, token in enumerate((PAD, START, END))}
    decoder = {
        str(i): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for t, i in special.items()
    }
    told = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [START, END],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": PAD,
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": PAD,
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": PAD,
    }
    names = {"additional_special_tokens": [START, END], "eos_token": PAD, "pad_token": PAD, "unk_token": PAD}
    for file, held in (
        ("vocab.json", words()),
        ("added_tokens.json", special),
        ("special_tokens_map.json", names),
        ("tokenizer_config.json", told),
    ):
        (folder / file).write_text(json.dumps(held))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))


def write_fine_tuned(folder: Path, held: dict[str, Tensor], told: dict, *, shards: int = 2) -> Path:
    """One set of files: sharded safetensors with an index, config, tokenizer, and what a trainer leaves."""
    folder.mkdir(parents=True)
    names = list(held)
    files = {
        name: f"model-{i * shards // len(names) + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)
    }
    for file in dict.fromkeys(files.values()):
        save_file({n: held[n].clone() for n in names if files[n] == file}, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in held.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _write_rest(folder, told)
    torch.save({"output_dir": "/home/someone/out"}, folder / "training_args.bin")
    return folder


def write_pre_trained(folder: Path, held: dict[str, Tensor], told: dict) -> Path:
    """Three sub-folders of pickled weights; parameters only, and a tied one only once."""
    folder.mkdir(parents=True)
    _write_rest(folder, told)
    for part, prefix in (
        ("language_model", "language_model."),
        ("vision_tower", "vision_tower._vision_tower."),
        ("connector", "connector."),
    ):
        own = {name.removeprefix(prefix): t for name, t in held.items() if name.startswith(prefix)}
        if told["text_config"].get("tie_word_embeddings"):
            own.pop("lm_head.weight", None)
        (folder / part).mkdir()
        torch.save(own, folder / part / "pytorch_model.bin")
    (folder / "language_model" / "config.json").write_text(json.dumps(told["text_config"]))
    (folder / "vision_tower" / "config.json").write_text(json.dumps(told["vision_config"]))
    return folder


def _write_rest(folder: Path, told: dict) -> None:
    (folder / "config.json").write_text(json.dumps(told))
    end = told["text_config"]["eos_token_id"]
    generation = {"bos_token_id": end, "do_sample": False, "eos_token_id": end, "max_new_tokens": 2048}
    (folder / "generation_config.json").write_text(json.dumps(generation | {"transformers_version": "4.39.3"}))
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1.0, "log_history": []}))
    write_words(folder)


def write_tower(folder: Path, *, mean: float = 0.5) -> Path:
    """The vision tower's folder, of which only the image processor is looked at."""
    folder.mkdir(parents=True)
    held = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [mean] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5] * 3,
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": SIDE, "width": SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(held))
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": {}}))
    return folder


def logits(held: dict[str, Tensor], rows: list[list[int]], pictures: Tensor, *, tied: bool = True) -> list[Tensor]:
    """Logits [length, vocabulary] of each row, where IMAGE is the place of a picture's features.

    `pictures` [rows, 3, SIDE, SIDE] holds one for every row, zeros for a row without one: it is encoded and
    none of it is used.
    """
    features = connect(held, see(held, pictures)[:, 1:])  # "patch": the first is dropped, whatever it is
    table = held["language_model.model.embed_tokens.weight"]
    head = table if tied else held["language_model.lm_head.weight"]
    found = []
    for row, feature in zip(rows, features, strict=True):
        pieces = [feature if token == IMAGE else table[token][None] for token in row]
        found.append(read(held, torch.cat(pieces)) @ head.T)
    return found


def see(held: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """The hidden state before the last of the tower's layers, [P, patches, width]."""
    at = "vision_tower._vision_tower.vision_model."

    def apply(name: str, x: Tensor) -> Tensor:
        return x @ held[f"{at}{name}.weight"].T + held[f"{at}{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (SEEN_WIDTH,), held[f"{at}{name}.weight"], held[f"{at}{name}.bias"], SEEN_EPS)

    cut = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2)  # [P, patches, 3 * PATCH * PATCH]
    kernel = held[f"{at}embeddings.patch_embedding.weight"].flatten(1)
    x = cut @ kernel.T + held[f"{at}embeddings.patch_embedding.bias"]
    x = x + held[f"{at}embeddings.position_embedding.weight"]
    for i in range(SEEN_LAYERS - 1):  # layer -2: the last one is not run
        layer = f"encoder.layers.{i}."
        y = norm(f"{layer}layer_norm1", x)
        q, k, v = (split(apply(f"{layer}self_attn.{n}_proj", y), SEEN_HEADS) for n in "qkv")
        weights = (q @ k.transpose(-1, -2) / math.sqrt(SEEN_WIDTH // SEEN_HEADS)).softmax(-1)
        x = x + apply(f"{layer}self_attn.out_proj", joined(weights @ v))
        y = apply(f"{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
        x = x + apply(f"{layer}mlp.fc2", F.gelu(y, approximate="tanh"))
    return x


def connect(held: dict[str, Tensor], x: Tensor) -> Tensor:
    at = "connector._connector."
    x = F.gelu(x @ held[f"{at}0.weight"].T + held[f"{at}0.bias"])
    return x @ held[f"{at}2.weight"].T + held[f"{at}2.bias"]


def read(held: dict[str, Tensor], x: Tensor) -> Tensor:
    """Qwen2 over embeddings [T, width] -> the last norm's output [T, width]."""
    at = "language_model.model."

    def norm(name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * held[f"{at}{name}.weight"]

    length, size = len(x), WIDTH // HEADS
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for i in range(LAYERS):
        layer = f"layers.{i}."
        y = norm(f"{layer}input_layernorm", x)
        q, k, v = (
            y @ held[f"{at}{layer}self_attn.{n}_proj.weight"].T + held[f"{at}{layer}self_attn.{n}_proj.bias"]
            for n in "qkv"
        )
        q, k = turned(split(q, HEADS), size), turned(split(k, KEYS), size)
        k, v = (t.repeat_interleave(HEADS // KEYS, 0) for t in (k, split(v, KEYS)))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(size)).masked_fill(~causal, -math.inf)
        x = x + joined(scores.softmax(-1) @ v) @ held[f"{at}{layer}self_attn.o_proj.weight"].T
        y = norm(f"{layer}post_attention_layernorm", x)
        gate, up, down = (held[f"{at}{layer}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
    return norm("norm", x)


def split(x: Tensor, heads: int) -> Tensor:
    """[..., T, heads * size] -> [..., heads, T, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def joined(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)


def turned(x: Tensor, size: int) -> Tensor:
    """Rotary positions: the halves of a head's features are the two coordinates that are turned."""
    angle = torch.arange(x.shape[-2])[:, None] * THETA ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
