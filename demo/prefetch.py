"""Makes now what images need of Debian's packages, so that the first lab which loads them is quick.

python -m demo.prefetch
"""

from __future__ import annotations

from demo import jenkins_image, postgres_image


def main() -> None:
    """Put both images' files into the lab's cache, where they are not there yet."""
    for files in (postgres_image.files, jenkins_image.files):
        print(files(print))


if __name__ == "__main__":
    main()
