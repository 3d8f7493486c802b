"""Tables and documents as Markdown, LaTeX and one HTML page."""
