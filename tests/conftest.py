"""Every test runs offline, on one thread and with a cache folder of its own process; what it starts sees this checkout."""

import gc
import os
import signal
import tempfile
import threading
from pathlib import Path

# what a shell starts in the background ignores Ctrl-C, and so would all that the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

_hashes = tempfile.TemporaryDirectory(prefix="switchkd-tests-")  # removed when the process ends
os.environ["SWITCHKD_CACHE"] = _hashes.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")])
)


def pytest_collection_finish():
    """What was imported and collected stays to the end: nothing that collects garbage has to look through it again."""
    gc.collect()
    gc.freeze()
