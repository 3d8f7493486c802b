"""The commands of `switchkd`: what each does, from its options to its last line."""
