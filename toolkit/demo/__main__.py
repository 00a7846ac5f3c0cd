"""`python -m toolkit.demo`."""

from toolkit.demo.tour import main

if __name__ == "__main__":
    main()
