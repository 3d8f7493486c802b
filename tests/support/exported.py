"""What a folder's model says, with nothing but torch and transformers, of whatever release: python exported.py FOLDER ...

Prints JSON: transformers' version and, for each folder, the new tokens by AutoProcessor and the Auto class, the same
through AutoTokenizer and AutoImageProcessor alone, and the pipeline's text.
"""

import json
import sys

import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

ASKED, LIMIT = "What is it?", 8


def picture():
    """A gradient, the same without any random generator."""
    return Image.frombytes("RGB", (60, 80), bytes(i * 7 % 256 for i in range(60 * 80 * 3)))


def say(folder):
    model, processor = (AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder))
    content = [{"type": "image"}, {"type": "text", "text": ASKED}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=picture(), text=text, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=LIMIT)[0, start:].tolist()

    words, pictures = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    count = int((inputs["input_ids"] == model.config.image_token_index).sum())
    apart = dict(words(text.replace("<image>", "<image>" * count), return_tensors="pt"))
    apart |= dict(pictures(picture(), return_tensors="pt"))
    again = model.generate(**apart, do_sample=False, max_new_tokens=LIMIT)[0, start:].tolist()

    content[0]["image"] = picture()
    talk = pipeline("image-text-to-text", model=folder)
    told = talk(text=[{"role": "user", "content": content}], max_new_tokens=LIMIT, generate_kwargs={"do_sample": False})
    return {
        "prompt": inputs["input_ids"][0].tolist(),
        "tokens": tokens,
        "apart": again,
        "text": processor.decode(tokens, skip_special_tokens=True),
        "pipeline": told[0]["generated_text"][-1]["content"],
    }


if __name__ == "__main__":
    print(json.dumps({"transformers": transformers.__version__, "said": [say(folder) for folder in sys.argv[1:]]}))
