"""Networks and Pyro models of the papers; examples and tests share them."""
