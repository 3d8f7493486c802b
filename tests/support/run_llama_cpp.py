"""Greedy tokens and visual tokens from GGUF files: python run_llama_cpp.py FOLDER QUESTIONS. Prints JSON.

Needs llama-cpp-python (with LLAMA_CPP_LIB_PATH, libraries that were built elsewhere), numpy and pillow.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd
from PIL import Image

MARKER = "<__media__>"


def tokenize(context, question):
    """The chunks of a question: text, image, text."""
    image = Image.open(question["image"]).convert("RGB")
    pixels = (ctypes.c_uint8 * (3 * image.width * image.height)).from_buffer_copy(image.tobytes())
    bitmap = mtmd.mtmd_bitmap_init(image.width, image.height, pixels)
    chunks = mtmd.mtmd_input_chunks_init()
    raw = question["text"].replace("<image>", MARKER).encode()
    text = mtmd.mtmd_input_text(text=raw, add_special=True, parse_special=True)
    if "text_len" in dict(mtmd.mtmd_input_text._fields_):
        text.text_len = len(raw)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) == 0
    mtmd.mtmd_bitmap_free(bitmap)
    return chunks


def visual_tokens(context, chunks, width):
    """The visual tokens [M, D] of the only image."""
    every = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
    (image,) = [c for c in every if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE]
    assert mtmd.mtmd_encode_chunk(context, image) == 0
    count = mtmd.mtmd_input_chunk_get_n_tokens(image)
    return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), (count * width,)).reshape(count, width).copy()


def prompt_ids(chunks):
    """The text's token ids, -1 for the image."""
    ids = []
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk, count = mtmd.mtmd_input_chunks_get(chunks, i), ctypes.c_size_t()
        if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            ids += [-1] * mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        else:
            ids += mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))[: count.value]
    return ids


def main(folder: Path, questions: list[dict]) -> None:
    llama_cpp.llama_backend_init()
    given = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(folder / "model.gguf").encode(), given)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    about = llama_cpp.llama_context_default_params()
    about.n_ctx = about.n_batch = about.n_ubatch = 1024
    about.n_threads = about.n_threads_batch = 1
    language = llama_cpp.llama_init_from_model(model, about)
    settings = mtmd.mtmd_context_params_default()
    settings.use_gpu, settings.n_threads, settings.warmup = False, 1, False
    settings.flash_attn_type = 0  # its default computes keys and values in half precision
    context = mtmd.mtmd_init_from_file(str(folder / "mmproj.gguf").encode(), model, settings)
    width, size = llama_cpp.llama_model_n_embd(model), llama_cpp.llama_vocab_n_tokens(vocabulary)
    told, visual, prompts, first, rest, later = [], [], [], 0.0, 0.0, 0
    for number, question in enumerate(questions):
        chunks = tokenize(context, question)
        prompts.append(prompt_ids(chunks))
        if number < 16:
            visual.append(visual_tokens(context, chunks, width).tolist())
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(language), True)
        began, past = time.process_time(), ctypes.c_int32(0)
        assert mtmd.mtmd_helper_eval_chunks(context, language, chunks, 0, 0, 1024, True, ctypes.byref(past)) == 0
        mtmd.mtmd_input_chunks_free(chunks)
        new: list[int] = []
        while len(new) < question["limit"] and (not new or not llama_cpp.llama_vocab_is_eog(vocabulary, new[-1])):
            if new:
                token = (llama_cpp.llama_token * 1)(new[-1])
                assert llama_cpp.llama_decode(language, llama_cpp.llama_batch_get_one(token, 1)) == 0
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(language, -1), (size,))
            new.append(int(logits.argmax()))
            if len(new) == 1:
                first, began = first + time.process_time() - began, time.process_time()
        rest, later = rest + time.process_time() - began, later + len(new) - 1
        told.append(new)
    per = {"first_ms": 1000 * first / len(told), "tokens_per_second": later / rest if later else None}
    print(json.dumps({"tokens": told, "visual": visual, "prompts": prompts, **per}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
