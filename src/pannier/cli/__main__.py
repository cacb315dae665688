"""``python -m pannier.cli``."""

from pannier.cli.main import main

main()
