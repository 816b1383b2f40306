"""A partition's interval table, record by record and in columns. Pure, as `core` is.

table        what both tables promise; `steps` is their flow, `effects` what comes out
plain        the table record by record; `columns` the table for whole batches
batch        record batches as Kafka has them; `unpack` their compression
orders       plain orders, which both tables have: `slots` places, `timers` deadlines
blocks       orders as the bytes of a checkpoint; `restored` orders read from them
store        rows: `row_index` names, `row_timers` deadlines, `row_blocks` checkpoints
row_form     an order as a row; `spill` moves orders between rows and plain orders
settlements  what the kernel has settled, as totals
kernel       the compiled half: what is done to a row for each record
scan         registry ids in a chunk; `memory` reserves addresses
"""

from durabill.schemas.extras import require

require(__name__, "engine", "cramjam", "numba", "numpy")
