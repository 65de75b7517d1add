"""Watch the champion; roll it back, or ask for a release."""

from pathlib import Path
from typing import Any

from prefect import flow

from tasks import monitor as tasks
from tasks.policy import keeps_secrets, quiet_own_errors
from trainyard.environment import read_environment
from trainyard.monitor.record import Look
from trainyard.recipe import read_recipe

HOME = Path(".trainyard")

quiet_own_errors()


@keeps_secrets
@flow(name="monitor", flow_run_name="{recipe}", validate_parameters=True)
def monitor(
    recipe: str, overrides: dict[str, Any] | None = None, environment: str = "laptop"
) -> Look:
    """Look at the champion of a recipe once, and do what its section `monitor` says.

    Args:
        recipe: Path of the recipe's YAML file, from the repository's root.
        overrides: Dotted keys of the recipe and their values for this look.
        environment: Where it serves: a file of deployments/environments.
    """
    where, wanted = read_environment(environment), read_recipe(Path(recipe), overrides)
    seen = tasks.look(wanted, HOME, where)
    return tasks.act(wanted, HOME, where, recipe, seen)
