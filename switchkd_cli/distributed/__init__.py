"""One training in several processes or on several machines: settings, cores, stop signals, exit reports."""
