"""One file a library.  These run in the library's own environment: they read plain files and know nothing of mmrec."""
