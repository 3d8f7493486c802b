"""The engine: the only zone of switchkd that imports torch and transformers."""

import logging

from switchkd_cli.distributed.launch_config import set_thread_variables
from switchkd_cli.planning.preflight import check_libraries

check_libraries()
set_thread_variables()  # torch reads it when it is first imported

# On a machine without a GPU, importing DeepSpeed warns that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
