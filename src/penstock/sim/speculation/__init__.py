"""Speculative decoding in virtual time: acceptance is drawn, decisions are the policies'."""
