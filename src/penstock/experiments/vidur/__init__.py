"""Vidur's published behaviour: the same requests, tables and rules give the same run."""
