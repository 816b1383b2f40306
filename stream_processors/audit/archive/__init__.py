"""The archive: the segments topic as Parquet files, which outlive Kafka's retention.

    ARCHIVE/day=2026-11-26/partition=3/00000000000000000000-00000000000000999999.parquet
    ARCHIVE/_manifest/entries/00000001.json      what each file is, chained; 00000000: of which log
    ARCHIVE/_manifest/head                       the signed size and root of the entries
    ARCHIVE/_tmp/                                files in the making; nothing in here counts

A file has the committed records of one partition from its first to its last offset, both in its
name, and says of every offset between them that has no record what it is. Where files end is a
function of the log (`cuts`), and so is what they hold (`rows`): whoever archives again makes the
same bytes. A file counts from the moment that its manifest entry is there, which is made as a
whole and never replaced. So a crash leaves nothing that counts half, and of two archivers at once
one is told to stop.

What begins with an underscore is passed over by Spark, DuckDB and Hive.
"""
