"""What is drawn on a terminal or printed as plain lines."""
