"""scripts/grow.py: a wider language model starts as the narrow one."""

import pytest
import torch

from scripts.grow import widen
from tests.support import tiny


@pytest.mark.parametrize("width", [24, 64])
def test_a_widened_model_says_what_the_narrow_one_says_and_all_of_it_can_learn(width, tmp_path):
    narrow = tiny.model(seed=1)
    batch = tiny.batch(narrow, tmp_path)
    inputs = {"input_ids": batch.input_ids[:1, :9], "pixel_values": batch.images[0]["pixel_values"]}
    inputs["input_ids"][0, :4] = narrow.inputs.image_token
    inputs["input_ids"][0, 4:] = torch.arange(5) + 50
    with torch.no_grad():
        wide = widen(narrow.model, width).eval()
        before, after = (model(**inputs).logits for model in (narrow.model, wide))
    assert wide.config.text_config.hidden_size == width
    assert torch.allclose(before, after, atol=1e-4)
    optimizer = torch.optim.SGD(wide.parameters(), lr=1.0)
    for _ in range(2):  # what writes learns first; then what it writes is read
        optimizer.zero_grad()
        wide(**inputs).logits.square().mean().backward()
        optimizer.step()
    language = [(name, p) for name, p in wide.named_parameters() if "language_model" in name]
    assert all(p.grad.any() for name, p in language)
    new = [(name, p.grad[-4:]) for name, p in language if name.endswith(("q_proj.weight", "up_proj.weight"))]
    assert new and all(gradient.any() for _, gradient in new)
