"""The experiments of Helix (Mei et al., ASPLOS'25), sections 6.3 to 6.9."""
