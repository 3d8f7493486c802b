"""Files on any file system: hashes that are kept, and locks between processes."""
