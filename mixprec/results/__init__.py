"""What the functions of the API give back: frozen values that save, load, print as tables and show themselves in
notebooks. ``base.Result`` is what they share."""
