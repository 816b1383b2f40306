"""`durabill openapi`: the HTTP contract for machines."""

from durabill.deploy.commands.common import AS_JSON


def openapi(as_json: AS_JSON = False) -> None:
    """Print the HTTP contract as OpenAPI 3.1: routes, shapes, answers; a gateway has it too.

    It is JSON in any case: with --json on one line.

        durabill openapi > openapi.json
    """
    import json

    from durabill.deploy.terminal import emit
    from durabill.producers.gateway import openapi as document

    made = document.openapi()
    if as_json:
        emit(made)
    else:
        print(json.dumps(made, indent=1, ensure_ascii=False), flush=True)
