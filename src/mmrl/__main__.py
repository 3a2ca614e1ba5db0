"""`python -m mmrl`, also under `torchrun -m` and `accelerate launch -m`."""

from mmrl.cli.main import run

if __name__ == "__main__":
    run()
