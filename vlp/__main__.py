"""``python -m vlp``: for torchrun and accelerate launch."""

from vlp.cli import main

if __name__ == "__main__":
    main()
