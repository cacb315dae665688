"""``python -m pannier.lab``: the lab without the rest of the command line."""

from pannier.lab.cli import lab

lab(prog_name="pannier lab")
