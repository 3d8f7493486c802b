"""Files on any file system: atomic writes, cached hashes, and locks between processes."""
