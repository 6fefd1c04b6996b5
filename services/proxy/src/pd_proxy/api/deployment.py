"""The answer of `GET /deployment`: the engines as they described themselves, by name and without addresses. Pure."""

from collections.abc import Mapping, Sequence

from pd_contracts.deployment import DeployedEngine, DeploymentDocument, shape_of
from pd_contracts.names import SIMULATED_ENGINE
from pd_proxy import __version__
from pd_proxy.engines.registry import Instance, State


def describe(
    name: str, instances: Sequence[Instance], *, ready: bool, settings: Mapping[str, str]
) -> DeploymentDocument:
    """The document. Engines that stopped pinging no longer belong to the deployment; `settings` as in `Settings.serving`."""
    present = [instance for instance in instances if instance.state is not State.LOST]
    return DeploymentDocument(
        name=name,
        shape=shape_of([instance.role for instance in present]),
        ready=ready,
        simulated=any(instance.engine == SIMULATED_ENGINE for instance in present),
        gpus=_gpus(present),
        instances=[_engine(instance) for instance in present],
        proxy_version=__version__,
        settings=dict(settings),
    )


def _gpus(instances: Sequence[Instance]) -> int | None:
    """The number of GPUs of all engines, each counted once; None if there are no engines, or if one did not name its GPUs."""
    if not instances or not all(instance.gpus for instance in instances):
        return None
    return len({uuid for instance in instances for uuid in instance.gpus})


def _engine(instance: Instance) -> DeployedEngine:
    return DeployedEngine(
        name=instance.name,
        role=instance.role,
        state=instance.state.value,
        engine=instance.engine,
        version=instance.version,
        versions=instance.versions,
        models=list(instance.models),
        connector=instance.connector,
        transport=instance.transport,
        image=instance.image,
        gpus=list(instance.gpus),
        gpu_model=instance.gpu_model,
    )
