"`python -m hyperclip_nb` is the `hyperclip_nb` command. Written by hand: nbdev exports no name with underscores."

from .cli.commands import main

if __name__ == "__main__":
    main()
