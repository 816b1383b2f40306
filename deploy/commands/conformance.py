"""`durabill conformance`: plays a gateway to a client in any language, and judges the client."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from durabill.deploy.commands.common import AS_JSON
from durabill.deploy.terminal import answer, say
from durabill.schemas.errors import SettingsError

if TYPE_CHECKING:
    from durabill.producers.conformance.features import Matrix
    from durabill.producers.conformance.server import Scenario

conformance_app = typer.Typer(
    no_args_is_help=True,
    help="Tests clients in any language: `durabill conformance serve` plays a gateway that makes"
    " trouble, and judges.",
)

Orders = Annotated[int, typer.Option(min=1, max=1_000, help="Services that the client is to run.")]
Segments = Annotated[int, typer.Option(min=2, max=1_000, help="Segments of each of them.")]
IntervalMs = Annotated[int, typer.Option(min=1, help="Length of a segment in ms.")]
Seed = Annotated[int, typer.Option(help="Shuffles the trouble; the same for the same seed.")]
Features = Annotated[
    str | None,
    typer.Option(help="Judge these alone: name[,name]. Trouble that shows no other stays away."),
]
TimeoutS = Annotated[float, typer.Option(min=1, help="After so many seconds judge what was seen.")]


@conformance_app.command()
def serve(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The client: started with its variables, ended with the play."),
    ] = None,
    orders: Orders = 3,
    segments: Segments = 40,
    interval_ms: IntervalMs = 200,
    seed: Seed = 0,
    features: Features = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Its port; 0 is a free one.")] = 0,
    ready_file: Annotated[
        Path | None, typer.Option(help="File that gets the client's variables, once it serves.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that gets the token. Default: one of its own.")
    ] = None,
    timeout_s: TimeoutS = 120.0,
    as_json: AS_JSON = False,
) -> None:
    """Play gateway to a client, with lost answers, 503, 401, 413, login pages, and judge it.

    The client gets BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS and TOKEN_FILE in its environment, where
    it is given as the command, and in --ready-file. It is to run so many services of so many
    segments, and to end. The play ends when all segments are settled, at SIGTERM, or after
    --timeout-s. Exit code 0 if every required feature was seen and passed, else 1.

        durabill conformance serve -- node client.js http
        durabill conformance serve --ready-file play.env --features no_loss,halved
    """
    from durabill.producers.conformance.features import NAMES
    from durabill.producers.conformance.server import Scenario

    seen = tuple(each for each in NAMES if command or each != "ends")  # else nobody sees it end
    chosen = seen if features is None else tuple(each.strip() for each in features.split(","))
    if unknown := sorted(set(chosen) - set(NAMES)):
        told = f"No features: {', '.join(unknown)}. `durabill conformance features` lists them."
        raise SettingsError([told])
    with tempfile.TemporaryDirectory(prefix="durabill-conformance-") as folder:
        token = Path(folder) / "token" if token_file is None else token_file
        scenario = Scenario(orders, segments, interval_ms, token.absolute(), seed, chosen)
        matrix = _play(scenario, command or [], host, port, ready_file, timeout_s)
    answer({"seed": seed, **matrix.as_json()}, _table(matrix), as_json)
    if not matrix.conforms:
        raise typer.Exit(1)


def _play(
    scenario: "Scenario",
    command: list[str],
    host: str,
    port: int,
    ready_file: Path | None,
    timeout_s: float,
) -> "Matrix":
    import asyncio

    from durabill.producers.conformance.server import play

    def tell(variables: dict[str, str]) -> None:
        lines = "".join(f"{name}={value}\n" for name, value in variables.items())
        if ready_file is not None:
            draft = ready_file.with_name(f"{ready_file.name}.new")
            draft.write_text(lines)
            os.replace(draft, ready_file)  # whoever waits for it reads all of it
        if not command:
            say(lines.rstrip())

    try:
        return asyncio.run(
            play(scenario, tell, command=command, host=host, port=port, timeout_s=timeout_s)
        )
    except OSError as error:
        told = f"It can't play on {host}:{port}, or start the client: {error.strerror or error}."
        raise SettingsError([told]) from error


def _table(matrix: "Matrix") -> str:
    lines = []
    for row in matrix.rows:
        advice = "" if row.feature.is_required else " (advice)"
        note = f": {row.note}" if row.note else ""
        lines.append(
            f"{row.verdict.value:<9} {row.feature.name:<17} {row.feature.says}{advice}{note}"
        )
    end = "The client conforms." if matrix.conforms else "The client does not conform."
    return "\n".join([*lines, "", end])


@conformance_app.command("features")
def features_command(as_json: AS_JSON = False) -> None:
    """List the features that a client is judged by.

    durabill conformance features
    """
    from durabill.producers.conformance.features import FEATURES

    rows = [
        {"name": each.name, "required": each.is_required, "says": each.says} for each in FEATURES
    ]
    lines = [
        f"{each.name:<17} {'required' if each.is_required else 'advice':<9} {each.says}"
        for each in FEATURES
    ]
    answer(rows, "\n".join(lines), as_json)
