"""`durabill asyncapi`: the Kafka contract for machines."""

from typing import TYPE_CHECKING

from durabill.deploy.commands.common import AS_JSON, with_settings

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

_TOPICS = ("segments_topic", "totals_topic", "dead_letters_topic", "orders_topic", "seal_topic")


@with_settings(*_TOPICS)
def asyncapi(settings: "Settings", as_json: AS_JSON = False) -> None:
    """Print the Kafka contract as AsyncAPI 3.0: topics, records, keys, headers, Avro schemas.

    It is JSON in any case: with --json on one line. It speaks of the topics as they are named here;
    the gateway's own, of HTTP, is at /openapi.json.

        durabill asyncapi > asyncapi.json
    """
    import json

    from durabill.deploy import asyncapi as document
    from durabill.deploy.terminal import emit

    made = document.asyncapi(settings.all_topics)
    if as_json:
        emit(made)
    else:
        print(json.dumps(made, indent=2, ensure_ascii=False), flush=True)
