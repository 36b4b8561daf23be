"""``python -m mixprec`` is the same as ``mixprec`` (``accelerate launch -m mixprec`` needs it)."""

from mixprec.cli import main

if __name__ == "__main__":
    main()
