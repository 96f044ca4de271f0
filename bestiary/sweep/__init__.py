"""Who carries out which run, and where. All state is in the store, so any number of sweeps may share one."""

from bestiary.sweep.jobs import Event
from bestiary.sweep.local import cores, default_threads, start_server
from bestiary.sweep.schedule import sweep

__all__ = ["Event", "cores", "default_threads", "start_server", "sweep"]
