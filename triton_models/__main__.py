"""``python -m triton_models``: the same commands as ``pacsnode models``."""

from triton_models.cli import app

if __name__ == "__main__":
    app(prog_name="python -m triton_models")
