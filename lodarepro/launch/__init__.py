"""Many cells: handed to Hydra's launchers, watched, shared with other processes."""

from lodarepro.launch.job import ended_here, job, started_here
from lodarepro.launch.progress import shown
from lodarepro.launch.status import Status, own_texts, read_statuses
from lodarepro.launch.sweep import Sweep, SweepFolder, check_launcher, concluded, settle, stopping_workers

__all__ = [
    "Status",
    "Sweep",
    "SweepFolder",
    "check_launcher",
    "concluded",
    "ended_here",
    "job",
    "own_texts",
    "read_statuses",
    "settle",
    "shown",
    "started_here",
    "stopping_workers",
]
