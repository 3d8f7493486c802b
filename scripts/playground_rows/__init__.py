"""The rows that only models learn from which ship with the package: drills, choices, texts and lists."""
