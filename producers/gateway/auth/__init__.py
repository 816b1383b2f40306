"""Who may ask the gateway: API keys, an issuer's tokens, tenants, rate limits.

Nothing of HTTP is here: what comes in are the texts of headers, what goes out is a `Caller`, or
`access.Refused`.
"""
