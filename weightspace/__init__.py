"""Weight spaces of recurrent networks, the functions they compute, and what is learned about them."""

__version__ = "0.4.1"
