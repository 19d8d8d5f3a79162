"""Families of architectures, without torch: reports that are read from the cache need the type."""

from typing import Literal

Family = Literal["convolutional", "convnext", "transformer"]
"""Family of a network's architecture, as far as recipes differ.

- "transformer": self-attention blocks hold most parameters (ViT, Swin, LeViT, MaxViT).
- "convnext": not so, and LayerNorm without BatchNorm or GroupNorm (ConvNeXt, MLP-Mixer). Such
  networks are fine-tuned like transformers.
- "convolutional": all others (ResNet, EfficientNet).
"""
