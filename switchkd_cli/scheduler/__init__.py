"""Planned runs become jobs, run in this process or in several worker processes."""
