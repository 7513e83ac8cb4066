"""What all workers are forked from: a process that imports this, serves nothing and loads no model.

Imported by multiprocessing's fork server only, never by a worker or the supervisor. What packages make of themselves at
import is then in memory once however many workers there are, and a worker that takes a dead one's place has nothing
to import. It is frozen, since the collector of cycles would write to each page that it looks at.
"""

import gc

import service.server  # noqa: F401

gc.collect()
gc.freeze()
