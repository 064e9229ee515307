"""Sources: sets of images by number, whatever stores them; they are listed once and read one by one.

`formats` holds the registry `FORMATS`: a class a storage format. `source` opens a spec and writes down which images
they were, `evaluation` opens the two halves of a labeled set. `decode` makes RGB of whatever a file holds, `pixels`
makes sets cheap to read at random, `cache` keeps what was fetched from an address. Labels are read only when asked for.
"""
