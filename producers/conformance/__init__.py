"""A gateway that makes trouble on purpose, and judges how a client in any language bears it.

`script` says by a seed which trouble comes when, `book` what a gateway would know, `server` plays
it over HTTP and writes down every `Exchange`, `judge` reads only what was written down.
"""

from durabill.schemas.extras import require

require(__name__, "gateway", "aiohttp")
