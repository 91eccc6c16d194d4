"""How many draft tokens for whom: trees, selection, verification, and who decides on them."""
