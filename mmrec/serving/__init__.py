"""One process that scores, recommends, searches and takes in posts and feedback over HTTP; needs mmrec[serve]."""
