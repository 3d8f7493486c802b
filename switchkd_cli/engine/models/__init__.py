"""Model families, one a file: see an image, project its features, decode text."""
