"""Formats in which classifiers leave this program: ONNX files and model folders of timm."""
