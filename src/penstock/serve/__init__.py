"""The runtime: plans on real workers, in real time. Needs ``pip install penstock[serve]``."""
