"""How far a dataset is from ImageNet, as the pretrained network sees it."""
