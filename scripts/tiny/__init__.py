"""Parts of the script that trains the tiny target and its draft."""
