"""The model of a document, before it is written in any format."""
