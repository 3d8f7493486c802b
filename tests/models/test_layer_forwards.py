"""L's last layer at the chosen positions only: the same hidden states and gradients, from less work."""

import pytest
import torch
from torch import nn

from switchkd_cli.engine.models.layer_forwards import by_position, only_at, recompute_layers
from tests.support.measured import pair


@pytest.fixture
def model():
    return pair().student.double()


def read(model, keep, *, again=False, everywhere=False):
    """Return the hidden states at `keep`, and the gradients of all layers' weights for their sum of squares."""
    layers = model.language.layers
    ids = torch.randint(5, 60, keep.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    with only_at(torch.ones_like(keep) if everywhere else keep, layers[-1]), recompute_layers(layers if again else ()):
        hidden = model.language(input_ids=ids, use_cache=False).last_hidden_state[keep]
    hidden.square().sum().backward()
    return hidden.detach(), [p.grad.clone() for p in layers.parameters()]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("chosen", ["some", "one", "all"])
def test_the_chosen_positions_are_what_the_complete_layer_gives(model, chosen, again):
    keep = torch.zeros(3, 12, dtype=torch.bool)
    keep[{"some": (..., slice(7, 11)), "one": (1, 5), "all": ...}[chosen]] = True
    hidden, gradients = read(model, keep, again=again)
    complete, of_complete = read(model, keep, everywhere=True)
    torch.testing.assert_close(hidden, complete, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, of_complete, rtol=0, atol=1e-12)


def test_only_the_last_layer_computes_fewer_positions(model):
    seen = []
    for layer in model.language.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    keep = torch.zeros(2, 9, dtype=torch.bool)
    keep[:, 6:] = True
    before, _ = read(model, torch.ones_like(keep))
    seen.clear()
    read(model, keep)
    assert seen == [keep.numel()] * (len(model.language.layers) - 1) + [int(keep.sum())]
    after, _ = read(model, torch.ones_like(keep))
    torch.testing.assert_close(after, before, rtol=0, atol=0)  # the layer has its own forward again


def test_a_layer_of_other_modules_is_computed_as_it_is():
    layer = nn.Sequential(nn.Linear(4, 4))
    given = torch.randn(2, 3, 4)
    with only_at(torch.zeros(2, 3, dtype=torch.bool), layer):
        assert torch.equal(layer(given), layer[0](given))
    assert by_position(layer) == []
