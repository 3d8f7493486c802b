"""Model families: encode images, project their features, generate text."""
