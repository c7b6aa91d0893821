"""Other programs' data sets in the library's form. One module per format; all give a ``Collection``."""
