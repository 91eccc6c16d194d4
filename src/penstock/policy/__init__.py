"""Every decision of serving, without clocks or I/O: simulator and runtime call the same objects."""
