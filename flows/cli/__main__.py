"""`python -m flows.cli`, for where the script is not on the path."""

from flows.cli.main import main

main()
