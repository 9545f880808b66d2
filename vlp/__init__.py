"""vlp: pretrain, fine-tune and benchmark CLIP-style image-text models."""

__version__ = "0.1.0"
