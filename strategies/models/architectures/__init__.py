"""Architectures of networks: EfficientNet-Lite of the embedded backbones, and all of timm's."""
