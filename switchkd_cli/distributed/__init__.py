"""One training in several processes or on several machines: settings, host files, signals, exit status."""
