"""One process that scores, recommends, searches and takes in posts and feedback over HTTP; needs mmrec[serve].

Its rooms, the highest first; each knows those below it only, and all of them the modules that lie here:

- ``http``: routes, the way in, what bodies hold.
- ``deployment``: a run and its export as a pair, checked, given what was published, swapped for another.
- ``studio``: what the page at / shows.
- ``figures``: what is counted.
- ``answers``: what requests are answered, from a model, an export and a store.
- ``posts``: what is exported and published, and vectors of what requests bring along.
- ``model``: what runs the model, and its export.
- ``stores``: what is remembered.
"""
