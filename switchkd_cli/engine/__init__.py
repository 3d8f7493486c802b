"""The engine: the only zone of switchkd that imports torch and transformers."""

import logging
from functools import partial

from switchkd_cli.distributed.launch_config import set_thread_variables
from switchkd_cli.planning.preflight import check_libraries

check_libraries()
set_thread_variables()  # torch reads it when it is first imported

# What libraries say while they are imported, which no user can change: DeepSpeed without a GPU; torchao, which transformers imports
# where it is installed, of kernels that were built for another torch, and torch of torchao.
NOISE = {"DeepSpeed": "Setting accelerator to CPU", "torchao": "Failed to load", "torch.utils._pytree": "Enum subclass"}
for name, text in NOISE.items():
    logging.getLogger(name).addFilter(partial(lambda text, record: text not in record.getMessage(), text))
