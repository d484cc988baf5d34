"""Parity with the original PyTorch code: our modules on its inputs and weights, against its numbers."""
