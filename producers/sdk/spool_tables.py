"""The layout of a spool's file: SQLite tables, with the format's number in PRAGMA user_version."""

FORMAT = 1  # another number is another layout
_SEGMENT_COLUMNS = """
    service_order_number TEXT NOT NULL, business_data_number INTEGER NOT NULL,
    start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, end_identifier INTEGER NOT NULL"""
TABLES = (
    # AUTOINCREMENT: an id never comes again, so a late acknowledgement can't hit a new segment
    f"CREATE TABLE pending (id INTEGER PRIMARY KEY AUTOINCREMENT, {_SEGMENT_COLUMNS})",
    "CREATE INDEX pending_by_order ON pending (service_order_number)",
    f"""CREATE TABLE rejected (id INTEGER PRIMARY KEY, {_SEGMENT_COLUMNS},
        reason TEXT NOT NULL, detail TEXT NOT NULL)""",
    """CREATE TABLE sessions (service_order_number TEXT PRIMARY KEY,
        report_interval_ms INTEGER NOT NULL, next_number INTEGER NOT NULL,
        reported_until_ms INTEGER NOT NULL, ended INTEGER NOT NULL)""",
)
NAMES = "service_order_number, business_data_number, start_ms, end_ms, end_identifier"
