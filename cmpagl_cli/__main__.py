"""`python -m cmpagl_cli` is `cmpagl`."""

from cmpagl_cli.app import main

if __name__ == "__main__":
    main()
