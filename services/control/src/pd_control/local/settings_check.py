"""The settings that processes will read, read before any of them starts: each would only end, seconds later, with the same sentence in its log."""

from collections.abc import Iterable, Mapping

from pd_contracts.profiles import ProfileError
from pd_contracts.settings import SettingsError, load
from pd_control.planning.plan import ProcessSpec
from pd_control.supervision.supervisor import environment_of


def refuse_unusable(specs: Iterable[ProcessSpec], environment: Mapping[str, str]) -> None:
    """Read the settings of the proxy, the monitor and simulated engines; those of vLLM engines are the doctor's.

    Raises:
        SettingsError: naming the process and the variable.
    """
    for spec in specs:
        try:
            _read(spec, environment_of(spec, environment))
        except SettingsError as error:
            msg = f"{spec.name} cannot start: {error}"
            raise SettingsError(msg) from error


def _read(spec: ProcessSpec, variables: Mapping[str, str]) -> None:
    # Imported here: other commands need not wait for them.
    if "pd_proxy" in spec.argv:
        from pd_proxy.settings import Settings as ProxySettings  # noqa: PLC0415

        load(ProxySettings, variables)
    if "pd_simulator" in spec.argv:
        from pd_simulator.profile import load_profile  # noqa: PLC0415
        from pd_simulator.settings import Settings as SimulatorSettings  # noqa: PLC0415

        settings = load(SimulatorSettings, variables)
        try:
            load_profile(settings.sim_profile)
        except ProfileError as error:
            msg = f"SIM_PROFILE: {error}"
            raise SettingsError(msg) from error
    if "pd_monitor" in spec.argv:
        from pd_monitor.settings import Settings as MonitorSettings  # noqa: PLC0415

        load(MonitorSettings, variables)
