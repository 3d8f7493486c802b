"""Tables and documents as text, Markdown, LaTeX, HTML, CSV and JSON."""
