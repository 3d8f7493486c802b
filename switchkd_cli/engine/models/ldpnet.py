"""LLaVA with LDPNetV2, MobileVLM V2's projector: 144 tokens from CLIP's 576 features.

transformers' LLaVA has only an MLP as its projector. So this is a model type of its own, a subclass that differs only
in the projector; transformers' Auto classes know it once this module is imported.
"""

import math

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration


class LlavaLdpConfig(LlavaConfig):
    """A LlavaConfig whose projector pools `projector_pooling` x `projector_pooling` features into one token."""

    model_type = "llava_ldpnetv2"
    projector_pooling: int = 2


class LDPNetV2(nn.Module):
    """Linear, GELU, Linear on each feature; average pooling over the grid; plus a depth-wise 3x3 convolution of the result.

    Source: MobileVLM V2 (arXiv 2402.03766), section 3.2. There the pooling adapts to 12 x 12; from its
    24 x 24 grid this is the mean of each 2 x 2 block, which this class computes for any even grid.
    """

    def __init__(self, config: LlavaLdpConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)
        self.pool = nn.AvgPool2d(config.projector_pooling)
        self.position = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, features: Tensor) -> Tensor:
        """features [P, S * S, vision width], row by row -> tokens [P, (S / pooling)^2, language width]."""
        side = math.isqrt(features.shape[1])
        tokens = self.linear_2(self.act(self.linear_1(features)))
        grid = self.pool(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return (grid + self.position(grid)).flatten(2).transpose(1, 2)


class LlavaLdpForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LlavaForConditionalGeneration with LDPNetV2 as its projector."""

    config: LlavaLdpConfig

    def __init__(self, config: LlavaLdpConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = LDPNetV2(config)
        self.post_init()  # of the new projector's weights


AutoConfig.register(LlavaLdpConfig.model_type, LlavaLdpConfig)
AutoModelForImageTextToText.register(LlavaLdpConfig, LlavaLdpForConditionalGeneration)
