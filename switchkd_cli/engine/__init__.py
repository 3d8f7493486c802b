"""The engine: the only zone of switchkd that imports torch and transformers."""

import logging

# On a machine without a GPU, importing DeepSpeed warns that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(
    lambda record: "Setting accelerator to CPU" not in record.getMessage()
)
