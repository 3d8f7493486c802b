"""A report of several recipes before it is a page."""
