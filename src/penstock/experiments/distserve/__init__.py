"""DistServe (OSDI 2024) again: its simulator's figures, its searches, its improvement factors."""
