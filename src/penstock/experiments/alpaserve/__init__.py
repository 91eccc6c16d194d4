"""AlpaServe (OSDI'23), alone and as the baseline of MaverIQ (SC'25)."""
