"""LLaVA with another model's projector, which stays as it is, and a trained map behind it to the width of its language model.

transformers' LLaVA has one MLP as its projector, as wide inside as the language model. So this is a model type of its own, a
subclass as in ldpnet.py. Source: CompoDistill's TAF, where the other model is the teacher.
"""

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from switchkd_cli.engine.models.seams import replaced


class LlavaFrozenConfig(LlavaConfig):
    """A LlavaConfig of which a frozen projector is `frozen_width` wide, inside and in what it gives."""

    model_type = "llava_frozen_projector"
    frozen_width: int = 0


class FrozenProjector(nn.Module):
    """The other model's projector, `frozen`, which no stage trains (`VisionLanguageModel.used_parameters`), then a linear `map`."""

    def __init__(self, config: LlavaFrozenConfig) -> None:
        super().__init__()
        with replaced(config.text_config, {"hidden_size": config.frozen_width}):
            self.frozen = LlavaMultiModalProjector(config)
        self.map = nn.Linear(config.frozen_width, config.text_config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """features [P, F, vision width] -> tokens [P, F, language width]."""
        return self.map(self.frozen(features))

    def fold(self) -> LlavaMultiModalProjector:
        """Fold the map into the frozen projector and return it: y -> A y + a after h -> W h + b is h -> A W h + (A b + a)."""
        last = self.frozen.linear_2
        weight, bias = (self.map.weight.double() @ of.double() for of in (last.weight, last.bias))
        last.weight, last.bias = (nn.Parameter(of.to(last.weight.dtype)) for of in (weight, bias + self.map.bias))
        return self.frozen


class LlavaFrozenForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LlavaForConditionalGeneration with a frozen projector and a map behind it."""

    config: LlavaFrozenConfig

    def __init__(self, config: LlavaFrozenConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = FrozenProjector(config)
        self.post_init()  # of the map's weights


AutoConfig.register(LlavaFrozenConfig.model_type, LlavaFrozenConfig)
AutoModelForImageTextToText.register(LlavaFrozenConfig, LlavaFrozenForConditionalGeneration)
