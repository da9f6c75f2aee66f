"""`python -m cmpagl_cli` is `cmpagl`."""

from cmpagl_cli.entry import main

if __name__ == "__main__":
    main()
