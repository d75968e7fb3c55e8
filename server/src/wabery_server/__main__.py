"""`python -m wabery_server`."""

from wabery_server.cli import main

main()
