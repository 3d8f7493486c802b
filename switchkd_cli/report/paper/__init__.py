"""The paper's claims and printed numbers, and what our runs say of them."""
