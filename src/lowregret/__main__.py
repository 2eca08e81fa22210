"""`python -m lowregret` is `lowregret`."""

from lowregret.cli.main import main

if __name__ == "__main__":
    main()
