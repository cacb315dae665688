"""`pannier`: the command line, a client of the API. One module per noun."""
