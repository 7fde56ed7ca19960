"""`python -m fewshot_mcl` is `fewshot-mcl`."""

from fewshot_mcl.cli import main

main()
