"""The cascade as diffusers' users know such models."""
